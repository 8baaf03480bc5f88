"""Whole lives of VMs from and to each kind of store. The guest's own counter shows that the same disk was saved."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.stores import HttpStore, Line, S3Server, SftpServer, table
from tests.lib.support import Site


class Place:
    """One kind of store: how a URI of it is made, and what lies there."""

    def __init__(self, uri, get, put, line):
        self.uri, self.get, self.put, self.line = uri, get, put, line


class World:
    """A worker that knows a store of each kind, each at the end of a line that a test may cut."""

    def __init__(self, folder):
        self.folder = folder
        self.http, self.s3, self.sftp = HttpStore(), S3Server(), SftpServer(folder)
        lines = {name: Line(each.port) for name, each in (("http", self.http), ("s3", self.s3), ("sftp", self.sftp))}
        ports = {name: each.port for name, each in lines.items()}
        http, s3, sftp = (f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        (folder / "roots/images").mkdir(parents=True)
        minion = folder / "minion"
        minion.write_text(
            f"id: m\nfile_client: local\nroot_dir: {folder}/salt\nfile_roots:\n  base: [{folder}/roots]\n"
        )
        self.site = Site(
            folder,
            f'salt_roots = ["images"]\nminion_config = "{minion}"\n'
            f'save_hosts = ["127.0.0.1:{ports["http"]}"]\n'
            + table(http, self.http.settings(folder))
            + table("s3://*", self.s3.settings(folder, endpoint=s3.replace("s3:", "http:")))
            + table(self.sftp.store(ports["sftp"]), self.sftp.settings(ports["sftp"])),
        )
        self.lines = lines
        self.secrets = (self.http.token, self.s3.secret, self.sftp.key.read_text().splitlines()[1])
        root = self.sftp.folder
        self.places = {
            "http": Place(
                lambda name: f"{http}/{name}",
                lambda name: self.http.kept["/" + name],
                lambda name, data: self.http.kept.__setitem__("/" + name, data),
                lines["http"],
            ),
            "s3": Place(lambda name: f"s3://disks/{name}", self.s3.get, self.s3.put, lines["s3"]),
            "sftp": Place(
                lambda name: f"{sftp}{root}/{name}",
                lambda name: (root / name).read_bytes(),
                lambda name, data: (root / name).write_bytes(data),
                lines["sftp"],
            ),
        }

    def close(self):
        self.site.close()
        for each in (*self.lines.values(), self.http, self.s3, self.sftp):
            each.close()


@pytest.fixture(scope="module")
def world(libvirt):
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = World(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def counter(folder, data):
    path = folder / "came-home.qcow2"
    path.write_bytes(data)
    return read_counter(path, "qcow2")


@pytest.mark.parametrize("kind", ["http", "s3", "sftp"])
def test_vm_boots_from_a_store_and_is_saved_there(world, bootchain, kind, tmp_path):
    there, site = world.places[kind], world.site
    there.put(f"{kind}.raw", bootchain(f"{kind}.raw").read_bytes())
    target = there.uri(f"{kind}-1.qcow2")
    parameters = {"hda_save_to": target, "mem_size": 32}
    assert site.call("start", name=f"{kind}-1", hda_image=there.uri(f"{kind}.raw"), **parameters)["success"]
    disk = site.wait(f"{kind}-1", "halted")["disks"]["hda"]
    saved = there.get(f"{kind}-1.qcow2")
    assert disk["saved_to"] == target
    assert disk["sha256"] == hashlib.sha256(saved).hexdigest()
    assert counter(tmp_path, saved) == 1
    manifest = json.loads(there.get(f"{kind}-1.qcow2.manifest.json"))
    assert (manifest["saved_to"], manifest["sha256"]) == (target, disk["sha256"])

    again = there.uri(f"{kind}-2.qcow2")
    parameters = {"hda_image": f"{target}#sha256={disk['sha256']}", "hda_save_to": again, "mem_size": 32}
    assert site.call("start", name=f"{kind}-2", **parameters)["success"]
    site.wait(f"{kind}-2", "halted")
    assert counter(tmp_path, there.get(f"{kind}-2.qcow2")) == 2
    assert site.leftovers() == set()


def test_vm_boots_from_salts_file_server(world, bootchain, tmp_path):
    bootchain("salt.raw", folder=world.folder / "roots/images")
    assert world.site.call("start", name="salt-1", hda_image="salt://images/salt.raw", mem_size=32)["success"]
    world.site.wait("salt-1", "halted")


@pytest.mark.parametrize("kind", ["http", "s3", "sftp"])
def test_store_that_cannot_be_reached_three_times(world, bootchain, kind, tmp_path):
    there, site, name = world.places[kind], world.site, f"{kind}-away"
    image = bootchain(f"{name}.raw", folder=site.images, variant="key")
    assert site.start(name, image, hda_save_to=there.uri(f"{name}.qcow2"))["success"]
    site.wait(name, "running")
    there.line.cut_down = 0
    site.end(name)
    reply = site.wait(name, "failed to save")
    assert "Saving failed 3 times" in reply["message"]
    kept = Path(reply["disks"]["hda"]["kept"])
    assert counter(tmp_path, kept.read_bytes()) == 1
    there.line.cut_down = None
    assert site.call("save_retry", name=name)["success"]
    site.wait(name, "halted")
    assert counter(tmp_path, there.get(f"{name}.qcow2")) == 1


def test_no_secret_was_written_or_said_anywhere(world):
    """Last in this file: it looks through all that the lives above have left."""
    said = json.dumps([world.site.events, world.site.call("list"), world.site.call("cache")])
    written = {
        path: path.read_bytes()
        for path in world.folder.rglob("*")
        if path.is_file() and path.parent.name != "ssh" and path.name not in ("s3.secret", "http.token")
    }
    assert any(path.name == "helper.log" for path in written)
    for secret in world.secrets:
        assert secret not in said
        assert [path for path, data in written.items() if secret.encode() in data] == []
    objects = world.s3.keys()
    assert not [key for key in objects if world.s3.secret.encode() in world.s3.get(key)]
