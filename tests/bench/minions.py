"""20 real minions on one machine, polled in one job by the master's poller, and again with one of them stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from devstack import health, process
from devstack.console import progress
from devstack.layout import Layout, Ports
from devstack.stack import Stack
from master_service.core import logging
from master_service.core.settings import load
from master_service.db.engine import Database
from master_service.db.tables import WorkerRow
from master_service.reconciler.event_listener import EventListener
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.saltapi.client import GateClient
from master_service.store import Store
from tests.bench.measure import Row, median, rounds

MINIONS = 20
_ROUNDS = 5
_AT_ONCE = 2
"""Minions that start at the same time: each takes seconds of a processor."""
_SHARED = ("virtlogd", "libvirtd", "salt-master", "salt-api", "gate")


@contextmanager
def swarm() -> Iterator[list[Stack]]:
    """A Salt master with salt-api, and its minions: each a stack of its own, with a data root of its own."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    ports = Ports.free()
    stacks = [
        Stack(Layout(var=folder / name, ports=ports, minion=name), report=lambda _: None)
        for name in (f"w{number:02}" for number in range(MINIONS))
    ]
    first, *others = stacks
    try:
        first.start([*_SHARED, "minion"])
        for stack in others:
            _join(stack.layout, first.layout)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda stack: stack.start(["minion"]), others))
        progress(f"{MINIONS} minions are up")
        yield stacks
    finally:
        for stack in reversed(stacks):  # the first one has the master, and maybe libvirt
            stack.stop()
        shutil.rmtree(folder)


def _join(layout: Layout, hub: Layout) -> None:
    """Let a stack's minion use another stack's master, with that one's keys and secret."""
    (layout.salt / "pki").mkdir(parents=True)
    (layout.salt / "pki/master").symlink_to(hub.salt / "pki/master")
    layout.api_secret.symlink_to(hub.api_secret)


class Polls:
    """The master's poller and listener on a database of their own, without the daemon that polls by itself."""

    def __init__(self, stacks: list[Stack]) -> None:
        logging.configure("error")
        self.stacks = stacks
        layout = stacks[0].layout
        settings, _ = load(layout.master_toml)
        self.salt = GateClient(settings.gate_socket, settings.salt_timeout_s)
        self.database = Database(settings.database_url)
        parts = Context(settings=settings, store=Store(self.database, settings), salt=self.salt)
        pusher = Pusher(parts)
        self.poller = Poller(parts, pusher)
        self.listener = EventListener(parts, pusher, self.poller)
        self.ended: list[float] = []
        """How long each poll took that all had to answer."""

    async def open(self) -> None:
        """Make the tables, listen, and poll until all minions answer."""
        await self.database.migrate()
        async with self.database.write() as session:
            for stack in self.stacks:
                session.add(WorkerRow(id=stack.layout.minion, key=health.fingerprint(stack.layout)))
        self.listening = asyncio.create_task(self.listener.run())
        while self.listener.age_s is None:  # noqa: ASYNC110 - no event announces it
            await asyncio.sleep(0.05)
        await self.all_answer()

    async def close(self) -> None:
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)
        await self.salt.close()
        await self.database.close()

    async def all_answer(self) -> None:
        """Poll until no minion is silent: a stopped one first does the jobs that it got meanwhile."""
        deadline = time.monotonic() + 120
        while len(self.poller.answered) < MINIONS:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {sorted(self.poller.answered)} answer")
            await self.poller.poll()

    async def undisturbed(self) -> float:
        """Return the seconds until the events of all but the last are in the database, while the last one answers."""
        fresh, ended = await self._one([stack.layout.minion for stack in self.stacks[:-1]])
        self.ended.append(ended)
        return fresh

    async def disturbed(self) -> float:
        """Return the same, while the last one is stopped."""
        layout = self.stacks[-1].layout
        leader = self.stacks[-1].running("minion")
        if leader is None:
            raise SystemExit(f"{layout.minion} does not run: {layout.log('minion')}")
        family = process.family(leader, layout.log("minion"))
        for one in family:
            os.kill(one.pid, signal.SIGSTOP)
        try:
            fresh, _ = await self._one([stack.layout.minion for stack in self.stacks[:-1]])
        finally:
            for one in family:
                os.kill(one.pid, signal.SIGCONT)
        if layout.minion in self.poller.answered:
            raise SystemExit(f"{layout.minion} answered although it was stopped")
        await self.all_answer()
        return fresh

    async def _one(self, minions: Collection[str]) -> tuple[float, float]:
        """Poll once. Return the seconds until these events are in the database, and until the poll has ended."""
        awaited, fresh = set(minions), 0.0
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")  # as SQLite keeps it
        with closing(sqlite3.connect(f"file:{self.database.file}?mode=ro", uri=True)) as reader:
            begin = time.perf_counter()
            polling = asyncio.create_task(self.poller.poll())
            while not fresh:
                over = polling.done()
                if awaited <= {row[0] for row in reader.execute("SELECT id FROM worker WHERE seen_at >= ?", (since,))}:
                    fresh = time.perf_counter() - begin
                elif over:
                    await polling
                    raise SystemExit(f"{awaited - self.poller.answered} did not answer")
                await asyncio.sleep(0.005)
            await polling
        return fresh, time.perf_counter() - begin


def polling(stacks: list[Stack]) -> list[Row]:
    """Poll all minions in one job, and again with one stopped, in turns."""
    polls = Polls(stacks)
    with asyncio.Runner() as runner:
        runner.run(polls.open())
        ways = {
            "undisturbed": lambda _: runner.run(polls.undisturbed()),
            "disturbed": lambda _: runner.run(polls.disturbed()),
        }
        middle = {name: median(values) for name, values in rounds(_ROUNDS, ways).items()}
        runner.run(polls.close())
    ended, usual, stopped = median(polls.ended), middle["undisturbed"], middle["disturbed"]
    return [
        Row(f"{MINIONS} real minions polled in one job", f"{ended:.2f} s", "3 s", ended / 3.0, 1.0),
        Row(
            f"news of {MINIONS - 1} of them, the other stopped",
            f"{stopped:.2f} s",
            f"none stopped: {usual:.2f} s",
            stopped / usual,
            1.1,
        ),
    ]
