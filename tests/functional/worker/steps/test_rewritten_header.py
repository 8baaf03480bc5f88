"""The header of a disk is rewritten while its VM runs, as a guest that has taken over QEMU could."""

import subprocess

from tests.lib.support import virsh


def test_disk_with_a_rewritten_header_is_kept_and_reported(site, bootchain):
    secret = site.folder / "secret"
    secret.write_bytes(b"for root only".ljust(1 << 20, b"."))
    secret.chmod(0o600)
    image = bootchain("taken.raw", folder=site.images, variant="key")
    reply = site.start("taken", image)
    site.wait("taken", "running")
    site.until_counted("taken")
    overlay = site.worker.store.folder(reply["uuid"]) / "hda.qcow2"
    virsh("destroy", "taken")
    site.wait("taken", "halted")
    before = overlay.read_bytes()
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(overlay)]
    subprocess.run(argv, check=True)

    assert site.call("shutdown", name="taken")["success"]
    message = site.wait("taken", "failed to save", "halted")["message"]
    assert "header of hda.qcow2 was changed" in message
    assert "secret" in message
    assert not site.saved_file("taken").exists()
    (kept,) = (site.folder / "data/failed_to_save").glob("taken-*/hda.qcow2")

    # An admin who puts the header right again gets the disk saved.
    kept.write_bytes(before)
    assert site.call("save_retry", name="taken")["success"]
    site.wait("taken", "halted")
    assert b"for root only" not in site.saved_file("taken").read_bytes()
