"""`plan` refuses what cannot work: networks that do not exist, and images that do not fit or are damaged."""

import gzip
import os

import pytest

from tests.lib.support import Site, eventually

SECTORS = os.urandom(510) + b"\x55\xaa" + bytes(1 << 20)
ISO = bytes(16 * 2048) + b"\x01CD001\x01" + bytes(2041) + b"\xffCD001\x01" + bytes(2041)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, networks=["lan", "nosuch"], bridges=["*"])


def plan(site, **parameters):
    return site.call("plan", **{"name": "planned", "mem_size": 32, "hda_image": "blank:1M", **parameters})


def put(site, name, data):
    path = site.images / name
    path.write_bytes(data)
    return f"file://{path}"


@pytest.mark.parametrize(
    ("drive", "data", "why"),
    [
        ("hda_image", SECTORS, ""),
        ("hda_image", bytes(1 << 20), "It is no disk image: neither qcow2 nor a raw disk with a boot sector"),
        ("hda_image", SECTORS[:700], "are not whole sectors"),
        ("hda_image", ISO, "It is a CD image. Use it as cd_image"),
        ("hda_image", b"PK\x03\x04" + SECTORS, "It is a .zip file"),
        ("hda_image", b"QFI\xfb" + bytes(600), "unsafe features"),
        ("hda_image", gzip.compress(b"no disk"), ""),  # examined when it is unpacked
        ("hdb_image", bytes(1 << 20), ""),
        ("cd_image", ISO, ""),
        ("cd_image", SECTORS, "It is no CD: it has no file system of one"),
        ("cd_image", b"#!/bin/sh\n", "It is no disk image: 10 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_local_file_that_does_not_fit_is_refused(site, drive, data, why):
    uri = put(site, "image", data)
    found = plan(site, **{drive: uri})
    if why:
        assert (found["success"], found["code"]) == (False, "bad_image")
        assert found["message"].startswith(f"{uri} cannot be used. ")
        assert why in found["message"]
    else:
        assert found["success"], found["message"]


def test_cached_image_that_does_not_fit_is_refused(site):
    uri = put(site, "image.iso", ISO)
    site.call("cache_prefetch", uri=uri)
    eventually(lambda: site.call("cache")["images"])
    assert plan(site, cd_image=uri)["images"][1]["cached"]
    assert "It is a CD image" in plan(site, hda_image=uri)["message"]


def test_network_that_the_host_lacks_is_refused(site, libvirt):
    assert plan(site)["fits"]
    for network in ("network=nosuch", "bridge=nosuch0"):
        found = plan(site, network=network)
        kind, _, name = network.partition("=")
        assert (found["success"], found["fits"], found["code"]) == (True, False, "unsupported")
        assert f"There is no {kind} '{name}' on this worker." in found["message"]
    assert plan(site, network="bridge=lo")["fits"]
    assert plan(site, network="network=other")["code"] == "policy"
