"""The content of a seed, read back by another program than wrote it, and secrets that stay inside."""

import base64
import email
import json
import subprocess

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from worker_service.contract import Spec
from worker_service.guest_agent import seed_iso

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@host"


def spec(**changes):
    return Spec(name="web_01", hda_image="file:///a", **changes)


def config(files):
    """The cloud-config documents in user-data, and how they are merged."""
    parts = email.message_from_bytes(files["user-data"]).get_payload()
    return [(part.get_content_type(), part["Merge-Type"], part.get_payload(decode=True)) for part in parts]


def ours(files):
    kind, merge, document = config(files)[-1]
    assert (kind, merge) == ("text/cloud-config", "list(append)+dict(no_replace,recurse_list)+str()")
    assert document.startswith(b"#cloud-config\n")
    return json.loads(document.partition(b"\n")[2])


def test_seed_has_the_agent_and_its_list():
    files = seed_iso.contents(spec(soft_list=("nginx", "git=1*")), "L1", b"", None)
    assert files["saltern/soft_list"] == b"nginx\ngit=1*\n"
    assert files["saltern/agent.sh"] == seed_iso.AGENT.read_bytes()
    agent, soft_list = ours(files)["write_files"]
    assert (agent["path"], agent["permissions"]) == ("/var/lib/cloud/scripts/per-boot/saltern-agent", "0755")
    assert soft_list["path"] == "/var/lib/saltern-agent/soft_list"


def test_seed_has_the_identity_of_the_guest():
    files = seed_iso.contents(spec(ssh_keys=(KEY,)), "L1", b"", None)
    assert json.loads(files["meta-data"]) == {
        "instance-id": "saltern-L1",
        "local-hostname": "web-01",
        "public-keys": [KEY],
    }
    assert ours(files) == {}
    assert "saltern/agent.sh" not in files
    named = seed_iso.contents(spec(hostname="www.example.com"), "L1", b"", None)
    assert json.loads(named["meta-data"])["local-hostname"] == "www.example.com"


def test_users_document_comes_first_and_ours_is_merged():
    files = seed_iso.contents(spec(soft_list=("git",)), "L1", b"#cloud-config\nruncmd: [[a]]\n", None)
    (kind, merge, document), _ours = config(files)
    assert (kind, merge, document) == ("text/cloud-config", None, b"#cloud-config\nruncmd: [[a]]\n")


def test_minion_gets_its_keys():
    keys = seed_iso.minion_keys(private := seed_iso.new_key())
    files = seed_iso.contents(spec(minion_master="salt.example.com"), "L1", b"", keys)
    content = {
        file["path"]: (base64.b64decode(file["content"]), file["permissions"]) for file in ours(files)["write_files"]
    }
    assert content.pop("/etc/salt/pki/minion/minion.pem") == (private, "0400")
    public, permissions = content.pop("/etc/salt/pki/minion/minion.pub")
    config, _ = content.pop("/etc/salt/minion.d/saltern.conf")
    assert (content, permissions) == ({}, "0644")
    # cloud-init's own module writes no keys: where no package has the name salt-minion it gives up before it does.
    minion = {"master": "salt.example.com", "id": "web_01"}
    assert ours(files)["salt_minion"] == {"conf": minion}
    assert yaml.safe_load(config) == minion
    public = serialization.load_pem_public_key(public)
    assert public == serialization.load_pem_private_key(private, None).public_key()


def test_another_program_reads_the_image(tmp_path):
    files = seed_iso.contents(spec(soft_list=("git",)), "L1", b"", None)
    (tmp_path / "seed.iso").write_bytes(seed_iso.iso(files))
    listed = subprocess.run(
        ["xorriso", "-indev", tmp_path / "seed.iso", "-pvd_info", "-osirrox", "on", "-extract", "/", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Volume Id    : cidata" in listed.stdout + listed.stderr
    read = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in read.items()} == files


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 300_000])
def test_files_of_every_size_fit(size):
    assert len(seed_iso.iso({"meta-data": b"x" * size, "user-data": b""})) >= size
