"""Paths and ports of a stack."""

import os
from pathlib import Path

import pytest

from devstack.layout import Layout, Ports, bound, choose_data_root, choose_socket_folder, passable

CLONE = Path("/home/ann/saltern/var")


def test_data_root_is_in_the_clone_when_qemu_can_get_there():
    assert choose_data_root(CLONE, passable=lambda _: True) == CLONE / "worker"


@pytest.mark.parametrize("closed", [CLONE, *CLONE.parents])
def test_one_closed_parent_moves_the_data_root_away(closed):
    root = choose_data_root(CLONE, passable=lambda folder: folder != closed)
    assert root.parent == Path("/var/lib")
    assert root.name.startswith("saltern-dev-")


def test_two_closed_clones_do_not_share_a_data_root():
    roots = {choose_data_root(Path(f"/root/{name}/var"), passable=lambda _: False) for name in ("a", "b")}
    assert len(roots) == 2


def test_data_root_of_a_clone_never_changes():
    assert choose_data_root(Path("/root/a/var"), passable=lambda _: False) == Path("/var/lib/saltern-dev-2a7b919f")


@pytest.mark.parametrize(("mode", "expected"), [(0o755, True), (0o711, True), (0o700, False), (0o750, False)])
def test_passable_looks_at_the_others(tmp_path, mode, expected):
    tmp_path.chmod(mode)
    assert passable(tmp_path) is expected


def test_folder_still_to_be_made_is_passable(tmp_path):
    assert passable(tmp_path / "later")


@pytest.mark.parametrize("depth", [1, 5, 20])
def test_salts_sockets_fit_into_the_kernels_limit(depth):
    folder = choose_socket_folder(Path("/", *["a-long-folder"] * depth, "var"))
    assert len(os.fsencode(folder / "minion/minion_event_0123456789_pub.ipc")) < 107


def test_free_ports_differ():
    ports = Ports.free()
    assert len(set(vars(ports).values())) == 10


def test_free_port_is_below_the_ephemeral_range(monkeypatch):
    """The kernel gives an ephemeral port to any client, in the time until a daemon listens there."""
    first, second, *_ = ports = vars(Ports.free()).values()
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    drawn = iter([first, first, second])
    monkeypatch.setattr("devstack.layout.secrets.choice", lambda _: next(drawn))
    with bound() as one, bound() as another:
        assert [each.getsockname()[1] for each in (one, another)] == [first, second]


def test_each_part_has_its_own_log_and_identity(tmp_path):
    layout = Layout(var=tmp_path)
    assert layout.log("a") != layout.log("b")
    assert layout.identity("a") != layout.identity("b")
