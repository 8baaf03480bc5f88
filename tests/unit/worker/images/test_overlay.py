"""Whether the header of an overlay says what the record says."""

import json
import struct
from pathlib import Path

import pytest

from worker_service.images.overlay import Chain, Layer, difference

SIZE = 1 << 20
BASE = "ab" * 32
AT = 512


def header(
    *, base=f"/data/{BASE}", base_format="raw", size=SIZE, features=0, encryption=0, version=3, magic=b"QFI\xfb"
):
    """The first cluster of an overlay, as qemu-img writes it."""
    name = (base or "").encode()
    head = struct.pack(">4sIQIIQI", magic, version, AT if base else 0, len(name), 16, size, encryption).ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, 112).ljust(40, b"\0")
    if base_format:
        head += struct.pack(">II", 0xE2792ACA, len(base_format)) + base_format.encode().ljust(8, b"\0")
    head += struct.pack(">II", 0x6803F857, 48) + bytes(48) + bytes(8)  # names of features, then the end
    return head.ljust(AT, b"\0") + name.ljust(4096, b"\0")


SAME = {
    "as it was made": {},
    "in a data root that was moved": {"base": f"/elsewhere/{BASE}"},
    "after a crash": {"features": 0b11},
    "of the older version": {"version": 2},
    "of a smaller disk": {"size": SIZE // 2},
}
CHANGED = [
    ({"base": "/etc/shadow"}, "its base is '/etc/shadow'"),
    ({"base": "nbd://10.0.0.1/x"}, "its base is 'nbd"),
    ({"base": f'json:{{"file.filename": "{BASE}"}}'}, "its base is 'json"),
    ({"base": "/x\x1b[2J\n"}, r"its base is '/x\x1b[2J\n'"),
    ({"base": None, "base_format": None}, "its base is None"),
    ({"base_format": "qcow2"}, "the format of its base is 'qcow2', not 'raw'"),
    ({"base_format": None}, "the format of its base is None, not 'raw'"),
    ({"features": 0b100}, "it has other features"),
    ({"features": 1 << 63}, "it has other features"),
    ({"encryption": 2}, "it has other features"),
    ({"size": SIZE * 2}, f"its size is {SIZE * 2} bytes, above the limit of {SIZE}"),
    ({"size": (1 << 64) - 512}, "its size is"),
    ({"magic": b"VMDK"}, "it is no qcow2"),
    ({"version": 4}, "it is no qcow2"),
]


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_same_header(changes):
    assert difference(header(**changes), BASE, "raw", SIZE) == ""


@pytest.mark.parametrize(("changes", "message"), CHANGED)
def test_changed_header(changes, message):
    assert message in difference(header(**changes), BASE, "raw", SIZE)


def test_size_counts_in_whole_sectors():
    assert difference(header(size=1024), BASE, "raw", 1000) == ""


def test_blank_disk_has_no_base():
    blank = header(base=None, base_format=None)
    assert difference(blank, None, "qcow2", SIZE) == ""
    assert difference(header(), None, "qcow2", SIZE).startswith("its base is '/data/")


@pytest.mark.parametrize("length", range(0, 104, 7))
def test_short_header_is_reported(length):
    assert difference(header()[:length], BASE, "raw", SIZE) == "it is too short"


@pytest.mark.parametrize("length", [0, 1, 7, 0xFFFFFFFF])
def test_wrong_length_of_an_extension_ends_the_search(length):
    data = bytearray(header(base_format=None))
    struct.pack_into(">II", data, 112, 0x12345678, length)
    assert "the format of its base" in difference(bytes(data), BASE, "raw", SIZE)


def file(name, **more):
    return {"driver": more.pop("driver", "qcow2"), "file": {"driver": "file", "filename": name}, **more}


CHAINS = {
    "qcow2 base": (("hda.qcow2",), "qcow2", file("/0", backing=file('/d/a "b"', backing=None))),
    "raw base": (("hda.qcow2",), "raw", file("/0", backing=file('/d/a "b"', driver="raw"))),
    "blank disk": (("hda.qcow2",), None, file("/0", backing=None)),
    "snapshot": (("hda.s", "hda.qcow2"), "raw", file("/0", backing=file("/1", backing=file('/d/a "b"', driver="raw")))),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chain_is_stated_to_its_end(case):
    names, base_format, expected = CHAINS[case]
    base = Path("/d/base") if base_format else None
    chain = Chain(
        layers=tuple(Layer(f"/d/{name}") for name in names), base=base, base_format=base_format or "raw", largest=SIZE
    )
    node = chain.node([f"/{number}" for number in range(len(names))], '/d/a "b"')
    assert json.loads(node.removeprefix("json:")) == expected


def test_copy_of_a_raw_disk_has_nothing_below():
    chain = Chain(layers=(Layer("/d/copy", "raw"),), base=None, base_format="raw", largest=SIZE)
    assert json.loads(chain.node(["/0"], "").removeprefix("json:")) == file("/0", driver="raw")
