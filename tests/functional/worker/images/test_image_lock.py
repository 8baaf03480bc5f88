"""The locks that QEMU's tools take on an image, seen from outside."""

import subprocess

import pytest

from tests.lib.support import eventually
from worker_service.images import image_lock, qemu_img


@pytest.mark.parametrize(("mode", "used", "written"), [(["-r"], True, False), ([], True, True)])
def test_open_image_is_used_and_a_writable_one_written(tmp_path, mode, used, written):
    image = tmp_path / "hda.qcow2"
    qemu_img.create_blank(image, 1 << 20)
    assert (image_lock.is_used(image), image_lock.is_written(image)) == (False, False)
    with subprocess.Popen(["qemu-io", *mode, "-f", "qcow2", image], stdin=subprocess.PIPE) as process:
        eventually(lambda: image_lock.is_used(image))
        assert (image_lock.is_used(image), image_lock.is_written(image)) == (used, written)
        process.communicate(b"quit\n")
    assert (image_lock.is_used(image), image_lock.is_written(image)) == (False, False)


def test_what_cannot_be_open_is_not_used(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "missing", tmp_path / "link"):
        assert not image_lock.is_used(path)
