"""10,000 VMs on 200 simulated workers: one pass of the master over all of them, and the time from an event to a row.

It runs as its own process, so that the memory it reports is its own: `python -m tests.bench.many_workers DATABASE_URL`.
It prints JSON.
"""

import asyncio
import base64
import json
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from master_service.core import logging
from master_service.core.settings import Settings
from master_service.db.engine import Database
from master_service.db.tables import VMachineRow, WorkerRow
from master_service.planning.vm import DesiredState, DesiredStatus
from master_service.reconciler.event_listener import EventListener
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.saltapi.client import Event
from master_service.store import Store
from master_service.store.mapping import desired_columns
from worker_service.contract import Capacity, ListReply, Spec, Status, VMStatus, event_tag
from worker_service.contract.signatures import FIELD, key_text, signed_bytes

WORKERS, VMS, PASSES, EVENTS = 200, 10_000, 5, 500
ROOM = Capacity(
    hypervisors=("kvm",),
    arches=("x86_64",),
    cpu_total=128,
    cpu_free=78,
    mem_total=1 << 18,
    mem_free=1 << 17,
    disk_free=1 << 40,
)


class ManyWorkers:
    """A Salt whose workers all answer that every VM runs. Replies are JSON, because salt-api parses JSON too."""

    def __init__(self) -> None:
        self.jobs = 0
        self.since = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
        self.answer = b""
        self.keys = {f"w{number:03}": Ed25519PrivateKey.generate() for number in range(WORKERS)}
        self.events = 0
        self.signing_s: list[float] = []
        """What 200 workers take for their signatures. In life each has its own processor for that."""

    def status(self, number: int, status: Status = Status.RUNNING, since: str = "") -> VMStatus:
        spec = Spec(name=f"vm{number:05}", hda_image="file:/srv/images/web.qcow2", hda_save_to=f"file:/srv/s/{number}")
        return VMStatus(
            uuid=uuid_of(number),
            name=spec.name,
            status=status,
            message="It runs.",
            generation=1,
            since=since or self.since,
            hypervisor="kvm",
            vnc="unix:/run/saltern/vnc.sock",
            spec=spec,
        )

    def prepare(self) -> None:
        per = VMS // WORKERS
        lists = {
            f"w{w:03}": ListReply(
                vmachines=tuple(self.status(n) for n in range(w * per, (w + 1) * per)),
                foreign=(),
                tombstones={},
                capacity=ROOM,
                version="0.1.0",
            )
            for w in range(WORKERS)
        }
        self.answer = msgspec.json.encode({"return": [lists]})

    def sign(self, data: Mapping[str, Any], subject: str, worker: str) -> dict[str, Any]:
        """As the worker does."""
        value = base64.b64encode(self.keys[worker].sign(signed_bytes(data, subject, worker, self.events))).decode()
        return {**data, FIELD: {"worker": worker, "counter": self.events, "value": value}}

    async def call(
        self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float, nonce: str
    ) -> dict[str, Any]:
        (answers,) = json.loads(self.answer)["return"]
        begun = time.monotonic()
        signed = {worker: self.sign(answers[worker], nonce, worker) for worker in workers}
        self.signing_s.append(time.monotonic() - begun)
        return signed

    async def publish(self, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], nonce: str) -> str:
        self.jobs += 1
        return str(self.jobs)


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


async def fill(store: Store, now: datetime) -> None:
    per = VMS // WORKERS
    async with store.database.write() as session:
        for n in range(VMS):
            spec = Spec(
                name=f"vm{n:05}", hda_image="file:/srv/images/web.qcow2", hda_save_to=f"file:/srv/s/{n}", mem_size=512
            )
            session.add(
                VMachineRow(
                    **desired_columns(
                        DesiredState(
                            uuid=uuid_of(n),
                            name=spec.name,
                            owner="admin",
                            spec=spec,
                            status=DesiredStatus.RUNNING,
                            generation=1,
                            user_generation=1,
                            version=1,
                            created_at=now,
                            changed_at=now,
                            worker=f"w{n // per:03}",
                        )
                    )
                )
            )


async def main(url: str) -> None:
    logging.configure("error")
    database = Database(url)
    await database.migrate()
    salt, store = ManyWorkers(), Store(database, Settings())
    parts = Context(settings=Settings(), store=store, salt=salt)  # type: ignore[arg-type]  # a pass needs no more of it
    pusher = Pusher(parts)
    poller = Poller(parts, pusher)
    listener = EventListener(parts, pusher, poller)
    await fill(store, parts.clock())
    async with database.write() as session:
        for worker, key in salt.keys.items():
            session.add(WorkerRow(id=worker, key=key_text(key.public_key().public_bytes_raw())))
    salt.prepare()
    await poller.poll()  # as in life: these VMs have been running for long
    pushing = asyncio.create_task(pusher.run())
    await asyncio.sleep(1)
    passes, used = [], []
    for _ in range(PASSES):
        begun, cpu = time.monotonic(), time.process_time()
        await poller.poll()
        while not pusher.idle:  # noqa: ASYNC110 - no event announces it
            await asyncio.sleep(0.001)
        passes.append(time.monotonic() - begun - salt.signing_s[-1])
        used.append(time.process_time() - cpu)
    heard = []
    for n in range(EVENTS):
        number = n * (VMS // EVENTS)
        worker = f"w{number // (VMS // WORKERS):03}"
        status = salt.status(number, Status.SUSPENDED if n % 2 else Status.RUNNING, datetime.now(UTC).isoformat())
        salt.events += 1
        tag = event_tag(worker, status.uuid, status.status)
        data = {"id": worker, "data": salt.sign(msgspec.to_builtins(status), tag, worker)}
        begun = time.monotonic()
        await listener.handle(Event(tag=tag, data=data))
        heard.append(time.monotonic() - begun)
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    await database.close()
    sys.stdout.write(
        json.dumps(
            {
                "pass_s": statistics.median(passes),
                "worst_pass_s": max(passes),
                "pass_cpu_s": statistics.median(used),
                "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "event_p95_s": statistics.quantiles(heard, n=20)[-1],
                "jobs": salt.jobs,
                "answer_mib": len(salt.answer) / 2**20,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
