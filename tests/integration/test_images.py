"""Images through the real Salt: what cannot be fetched or used is refused, with the worker's own sentence."""

import subprocess

from devstack.guests import build_bootchain
from devstack.layout import REPO


def saltern(stack, *words):
    argv = [REPO / ".venv/bin/saltern", "--url", stack.layout.master_url, "--token-file", stack.layout.admin_token]
    return subprocess.run([*argv, *words], check=False, capture_output=True, text=True, timeout=300)


def test_prefetch_ends_with_what_the_worker_found(stack):
    image = stack.layout.images / "prefetched.raw"
    build_bootchain(image)
    done = saltern(stack, "images", "prefetch", f"file://{image}")
    assert (done.returncode, f"{stack.layout.minion}: in the cache" in done.stdout) == (0, True), done.stderr
    missing = saltern(stack, "images", "prefetch", f"file://{image}-nosuch")
    assert missing.returncode == 1
    assert f"{stack.layout.minion}: file://{image}-nosuch cannot be opened" in missing.stderr
    shown = saltern(stack, "images").stdout
    assert f"file://{image} " in shown
    assert f"failed on {stack.layout.minion}: file://{image}-nosuch cannot be opened" in shown
    assert saltern(stack, "images", "pin", f"file://{image}").returncode == 0
    cleaned = saltern(stack, "images", "clean", "-y")  # images of other tests may go
    assert (cleaned.returncode, "freed" in cleaned.stdout) == (0, True), cleaned.stderr
    shown = saltern(stack, "images").stdout
    assert (f"file://{image} " in shown, "nosuch" in shown) == (True, False)


def test_create_that_cannot_work_stores_nothing(stack):
    image = stack.layout.images / "refused.raw"
    build_bootchain(image)
    save_to = f"file://{stack.layout.saved}/refused.qcow2"
    for options, why in (
        (["--hda-image", "file:///etc/shadow"], "lies outside the folders that images are read from"),
        (["--hda-image", f"file://{image}", "--hda-save-to", "file:///etc/x"], "lies outside the folders"),
        (["--hda-image", f"file://{image}", "--network", "bridge=nosuch0"], "is not one that VMs may join here"),
        (["--hda-image", "blank:1M", "--hdb-image", f"file://{stack.layout.admin_token}"], "lies outside the folders"),
    ):
        refused = saltern(stack, "create", "refused", "--hda-save-to", save_to, *options)
        assert refused.returncode == 1, refused.stdout
        assert why in refused.stderr
    assert saltern(stack, "create", "refused", "--hda-image", f"file://{image}", "--worker", "nosuch").returncode == 3
    assert saltern(stack, "show", "refused").returncode == 3


def test_change_that_cannot_work_keeps_the_former_value(stack):
    image, saved = stack.layout.images / "changed.raw", f"file://{stack.layout.saved}/changed.qcow2"
    build_bootchain(image, variant="spin")
    made = saltern(stack, "create", "changed", "--hda-image", f"file://{image}", "--hda-save-to", saved)
    assert made.returncode == 0, made.stderr
    for dry in ([], ["--dry-run"]):
        refused = saltern(stack, "modify", "changed", "--hda-save-to", "file:///etc/x", *dry)
        assert (refused.returncode, "lies outside the folders" in refused.stderr + refused.stdout) == (1, True)
    assert saved in saltern(stack, "show", "changed", "-o", "json").stdout
    assert saltern(stack, "destroy", "changed", "-y").returncode == 0
