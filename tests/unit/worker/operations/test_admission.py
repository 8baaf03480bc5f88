"""Refusals for lack of room: each says what takes it, in words that a master knows as numbers of a worker."""

from types import SimpleNamespace

import pytest

from worker_service.contract import Capacity, Code, Spec, Taken, names_room
from worker_service.core.errors import Refused
from worker_service.core.settings import ImagePolicy
from worker_service.images.download import require_room
from worker_service.operations import admission

FREE = Capacity(
    hypervisors=("kvm",), arches=("x86_64",), cpu_total=32, cpu_free=1, mem_total=8192, mem_free=100, disk_free=1,
    taken={"on": Taken(vms=2, cpus=2, mem=1024), "kept": Taken(vms=7, cpus=29, mem=7068)},
)  # fmt: skip


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.setattr(admission, "capacity", lambda *_: FREE)
    store = SimpleNamespace(all=lambda: (), root=tmp_path)
    settings = SimpleNamespace(images=ImagePolicy())
    return SimpleNamespace(store=store, settings=settings, hypervisor=lambda _: SimpleNamespace(cpus=lambda: 2))


def refusal(check, *arguments, **more):
    with pytest.raises(Refused) as caught:
        check(*arguments, **more)
    assert caught.value.code is Code.NO_ROOM
    return str(caught.value)


@pytest.mark.parametrize("spec", [{"mem_size": 101, "cpu_count": 1}, {"mem_size": 16, "cpu_count": 2}])
def test_refusal_says_what_takes_the_room(worker, spec):
    message = refusal(admission.require_capacity, worker, Spec(name="a", hda_image="blank:1M", **spec), to_fetch=0)
    assert "Taken: on 2 (2 processors, 1024 MiB), kept 7 (29 processors, 7068 MiB)." in message
    assert names_room(message)


def test_refusal_about_the_disk_is_known_by_its_words(tmp_path):
    message = refusal(require_room, tmp_path, ImagePolicy(), "'a' needs 9 MiB for its images", 1 << 60)
    assert names_room(message)
