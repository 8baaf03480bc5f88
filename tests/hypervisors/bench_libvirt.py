"""Share the bench of libvirt's hypervisors: virsh looks and acts, without the product."""

import subprocess
import uuid as uuids
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.hypervisors.bench import Bench
from tests.lib.support import Site, remove_domains


class LibvirtBench(Bench):
    """A hypervisor that libvirt drives."""

    domain_type: str
    """The type of a domain in libvirt's XML."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """The URI of its libvirt."""

    def virsh(self, *words: str) -> str:
        """Return the output of virsh. Errors are ignored."""
        command = ["virsh", "-q", "-c", self.uri, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout

    def _remove_domains(self, site: Site) -> None:
        settings = site.worker.settings
        remove_domains(settings.data_root, self.uri, settings.libvirt_log_folder)

    def domains(self) -> dict[str, bool]:
        on = self.virsh("list", "--uuid").split()
        return {each: each in on for each in self.virsh("list", "--all", "--uuid").split()}

    def power_off(self, uuid: str) -> None:
        self.virsh("destroy", uuid)

    def forget(self, uuid: str) -> None:
        self.virsh("undefine", uuid)

    def disc(self, uuid: str) -> Path | None:
        domain = ET.fromstring(self.virsh("dumpxml", uuid))
        source = domain.find("./devices/disk[@device='cdrom']/target[@dev='hdc']/../source")
        file = source.get("file") if source is not None else None
        return Path(file) if file else None

    @contextmanager
    def foreign(self, name: str) -> Iterator[str]:
        uuid, definition = str(uuids.uuid4()), self.folder / "foreign.xml"
        definition.write_text(
            f"<domain type='{self.domain_type}'><name>{name}</name><uuid>{uuid}</uuid><memory>16384</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        self.virsh("define", str(definition))
        try:
            yield uuid
        finally:
            self.virsh("undefine", uuid)


def qemu_with(word: str) -> int | None:
    """Return the pid of the QEMU that has a text in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command.partition(b"\0")[0] and word.encode() in command:
                return int(entry.name)
    return None
