"""The bench of the fake hypervisor, which stands in for `kvm`."""

import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.hypervisors.bench import Bench
from tests.lib import fake_hypervisor
from tests.lib.fake_hypervisor import SCHEME, Domain, Fake
from tests.lib.support import Site
from worker_service.core.settings import Settings


class FakeBench(Bench):
    name = "kvm"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._held = ExitStack()
        self._held.enter_context(fake_hypervisor.installed())
        self._uri = f"{SCHEME}{folder}/domains"
        self._fake = Fake(Settings(libvirt_uri=self._uri))

    def _site(self, folder: Path, **settings: object) -> Site:
        return Site(folder, libvirt_uri=self._uri, **settings)

    def _remove_domains(self, site: Site) -> None:
        for record in site.worker.store.all():
            self.power_off(record.uuid)
            self.forget(record.uuid)

    def domains(self) -> dict[str, bool]:
        return {uuid: domain.on for uuid, domain in self._fake.domains().items()}

    def is_alive(self, uuid: str) -> bool:
        return self.domains().get(uuid, False)

    def power_off(self, uuid: str) -> None:
        self._fake.power_off(uuid)

    def forget(self, uuid: str) -> None:
        self._fake.forget(uuid)

    def crash(self, uuid: str) -> None:
        self._fake.crash(uuid)

    def output(self, site: Site, uuid: str) -> bytes:
        self._fake.domains()  # then its guests have done what was due
        return super().output(site, uuid)

    def disc(self, uuid: str) -> Path | None:
        cd = self._fake.domains()[uuid].cd
        return Path(cd) if cd else None

    @contextmanager
    def foreign(self, name: str) -> Iterator[str]:
        uuid = str(uuids.uuid4())
        self._fake.define(Domain(uuid=uuid, name=name))
        try:
            yield uuid
        finally:
            self._fake.forget(uuid)

    def stop_toolstack(self) -> None:
        self._fake.stop_toolstack()

    def start_toolstack(self) -> None:
        self._fake.start_toolstack()

    def _cut_power(self) -> None:
        self._fake.lose_power()

    def close(self) -> None:
        self._held.close()
