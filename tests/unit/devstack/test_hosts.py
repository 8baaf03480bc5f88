"""QEMU's command line of an emulated host, and the disks with the code of this clone."""

from itertools import pairwise

from devstack.hosts import code
from devstack.hosts.machine import Image, command_line
from devstack.hosts.xen_host import xen_image


def words_after(argv, option):
    return [value for word, value in pairwise(argv) if word == option]


def test_host_gets_its_disk_and_read_only_disks_in_order(tmp_path):
    image = Image(tmp_path / "image", ("-smp", "2"), (tmp_path / "one.ext4", tmp_path / "two.ext4"))
    drives = words_after(command_line(image, tmp_path / "run", {22: 10022}), "-drive")
    assert [drive.split(",")[2] for drive in drives] == [
        f"file={path}" for path in (tmp_path / "run/disk.qcow2", tmp_path / "one.ext4", tmp_path / "two.ext4")
    ]
    assert ["readonly=on" in drive for drive in drives] == [False, True, True]


def test_ports_of_a_host_lead_from_loopback_only(tmp_path):
    argv = command_line(Image(tmp_path, ()), tmp_path, {8081: 10081, 22: 10022})
    assert words_after(argv, "-netdev") == [
        "user,id=net0,hostfwd=tcp:127.0.0.1:10022-:22,hostfwd=tcp:127.0.0.1:10081-:8081"
    ]


def test_dom0_mounts_disks_where_they_belong(tmp_path):
    disks = {tmp_path / "a.ext4": "/srv/my clone", tmp_path / "b.ext4": "/srv/my clone/.venv"}
    image = xen_image(tmp_path, disks)
    modules = words_after(image.boot, "-initrd")[0]
    assert "saltern.mounts=vdb:/srv/my%20clone,,vdc:/srv/my%20clone/.venv" in modules
    assert image.extra_disks == tuple(disks)


def test_changed_source_makes_another_disk(tmp_path, monkeypatch):
    clone, cache = tmp_path / "clone", tmp_path / "cache"
    (clone / "worker_service").mkdir(parents=True)
    source = clone / "worker_service/one.py"
    source.write_text("ONE = 1\n")
    (clone / "worker_service/gone.py").touch()
    monkeypatch.setattr(code, "REPO", clone)
    monkeypatch.setattr(code, "_SOURCES", ("worker_service",))
    first = code.source_disk(cache)
    assert code.source_disk(cache) == first
    source.write_text("ONE = 11\n")
    (clone / "worker_service/gone.py").unlink()
    second = code.source_disk(cache)
    assert (second != first, list(cache.glob("*.ext4"))) == (True, [second])
    staged = next(path for path in cache.iterdir() if path.is_dir()) / "worker_service"
    assert [path.name for path in staged.iterdir() if path.is_file()] == ["one.py"]
    assert (staged / "__pycache__/one.cpython-311.pyc").exists()
