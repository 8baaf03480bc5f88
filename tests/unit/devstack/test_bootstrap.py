"""Missing packages and programs of a machine, from the output of its tools."""

import pytest

from devstack import bootstrap
from devstack.console import Trouble, table
from devstack.layout import Layout

LISTING = """\
gcc ii
make ii
nasm rc
mtools un
seabios iU
libc6-dev ii
libc6-dev ii
"""


@pytest.mark.parametrize(
    ("packages", "missing"),
    [
        (["gcc", "make"], []),
        (["gcc", "nasm"], ["nasm"]),  # removed, its configuration kept
        (["mtools"], ["mtools"]),
        (["seabios"], ["seabios"]),  # unpacked, never configured
        (["never-heard-of"], ["never-heard-of"]),
        (["libc6-dev"], []),  # two architectures
    ],
)
def test_missing_packages_are_found(packages, missing):
    assert bootstrap.missing_packages(packages, LISTING) == missing


def test_package_list_has_no_comments():
    assert bootstrap.required_packages("# why\n\ngcc   # compiles\nmake\n") == ["gcc", "make"]


def test_each_package_has_its_reason():
    lines = [line for line in bootstrap.PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "# " not in line] == []


def test_lock_block_is_one_package_with_its_hashes():
    lock = "uvicorn==1 \\\n    --hash=sha256:aa\nuv==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\nx==3\n"
    assert bootstrap.lock_block(lock, "uv") == "uv==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"


def test_lock_file_names_uv_and_no_place_of_its_own():
    lock = bootstrap.LOCK.read_text()
    assert bootstrap.lock_block(lock, "uv").startswith("uv==")
    assert "://" not in lock


def test_lock_block_without_hashes_says_what_to_do():
    with pytest.raises(Trouble, match="make lock"):
        bootstrap.lock_block("a==1\n", "uv")


def test_last_line_is_short_and_not_blank(tmp_path):
    log = tmp_path / "log"
    log.write_text(f"first\n{'x' * 300}\n\n  \n")
    assert len(bootstrap.last_line(log)) == 100
    log.write_text("")
    assert bootstrap.last_line(log) == ""


def test_failed_command_names_its_log(tmp_path):
    log = tmp_path / "x.log"
    with pytest.raises(Trouble, match=r"trying failed \(no such thing\): read the end of .*x\.log"):
        bootstrap.run(["sh", "-c", "echo no such thing; exit 3"], what="trying", log=log)


def test_table_aligns():
    assert table([("A", "BB"), ("long", "x")]) == "A     BB\n----  --\nlong  x"


def test_demo_image_is_built_again_when_its_guest_has_changed(monkeypatch, tmp_path):
    built, source = [], tmp_path / "demo.py"
    source.write_text("one")
    layout = Layout(var=tmp_path)
    (tmp_path / "cache/guests").mkdir(parents=True)
    layout.images.mkdir()

    def build(image, _cache):
        built.append(source.read_text())
        image.touch()

    monkeypatch.setattr(bootstrap, "build_demo", build)
    monkeypatch.setattr(bootstrap.demo, "__file__", str(source))
    for text in ("one", "one", "two"):
        source.write_text(text)
        bootstrap.make_demo_image(layout)
    layout.images.joinpath("demo.qcow2").unlink()
    bootstrap.make_demo_image(layout)
    assert built == ["one", "two", "two"]
