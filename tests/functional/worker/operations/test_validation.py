"""Errors of the worker: each has a helpful message and leaves no file, no domain and no name behind."""

import subprocess

import pytest
from werkzeug import Response

from tests.lib.support import sha256, virsh


@pytest.fixture(autouse=True)
def nothing_left(site):
    yield
    for vm in site.call("list")["vmachines"]:
        assert site.call("destroy", uuid=vm["uuid"])["success"]
    assert site.leftovers() == set()
    assert list((site.folder / "data/names").iterdir()) == []
    assert not {"bad"} & set(virsh("list", "--all", "--name").split())


def fails(site, uri, *words, **parameters):
    """Start with a URI that cannot work; the reason is in the message, and no disk is left."""
    reply = site.call("start", name="bad", hda_image=uri, mem_size=32, **parameters)
    assert reply["success"], reply
    reply = site.wait("bad", "failed to start")
    for word in words:
        assert word in reply["message"], reply["message"]
    assert site.leftovers() == set()
    assert reply["message"].count(".") >= 2  # the problem, its cause, and the advice
    return reply


def test_missing_image_file_is_reported(site):
    fails(site, f"file://{site.images}/none.qcow2", "none.qcow2", "No such file")


def test_folder_and_a_link(site):
    (site.images / "folder").mkdir(exist_ok=True)
    fails(site, f"file://{site.images}/folder", "regular file")
    (site.images / "link.raw").symlink_to("/etc/passwd")
    site.call("destroy", name="bad")
    fails(site, f"file://{site.images}/link.raw", "regular file")
    (site.images / "linked").symlink_to("/etc")
    site.call("destroy", name="bad")
    fails(site, f"file://{site.images}/linked/passwd", "symbolic link")


def test_file_that_is_no_image_is_reported(site):
    (site.images / "text.raw").write_text("hello".ljust(1024))
    fails(site, f"file://{site.images}/text.raw", "no disk image", "boot sector")
    (site.images / "odd.raw").write_text("hello")
    site.call("destroy", name="bad")
    fails(site, f"file://{site.images}/odd.raw", "whole sectors")
    (site.images / "empty.raw").write_bytes(b"")
    site.call("destroy", name="bad")
    fails(site, f"file://{site.images}/empty.raw", "no disk image")


def test_image_with_a_backing_file(site):
    path = site.images / "backed.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", str(path), "1M"]
    subprocess.run(argv, check=True)
    fails(site, f"file://{path}", "backing_file", "Flatten")


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "qed"])
def test_other_formats_are_named(site, kind):
    path = site.images / f"other.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), "1M"], check=True)
    fails(site, f"file://{path}", kind, "qemu-img convert")


def test_huge_virtual_size_is_refused(site):
    path = site.images / "huge.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "60T"], check=True)
    fails(site, f"file://{path}", "61440 GiB", "2048 GiB")


def test_wrong_digest_is_reported(site, bootchain):
    image = bootchain("digest.raw", folder=site.images)
    fails(site, f"file://{image}#sha256={'0' * 64}", sha256(image), "0" * 64)
    site.call("destroy", name="bad")
    assert site.call("start", name="bad", hda_image=f"file://{image}#sha256={sha256(image)}", mem_size=32)["success"]
    site.wait("bad", "halted")


def test_http_404_is_not_tried_again(site, httpserver):
    requests = []
    httpserver.expect_request("/none.raw").respond_with_handler(lambda r: requests.append(r) or Response(status=404))
    fails(site, httpserver.url_for("/none.raw"), "404")
    assert len(requests) == 1


def test_http_500_is_tried_three_times(site, httpserver):
    requests = []
    httpserver.expect_request("/busy.raw").respond_with_handler(lambda r: requests.append(r) or Response(status=503))
    fails(site, httpserver.url_for("/busy.raw"), "503")
    assert len(requests) == 3


def test_http_that_ends_too_early(site, httpserver):
    def short(_request):
        return Response(iter([b"x" * 100]), headers={"Content-Length": "1000"})

    httpserver.expect_request("/short.raw").respond_with_handler(short)
    reply = fails(site, httpserver.url_for("/short.raw"))
    assert "broke off" in reply["message"]


@pytest.mark.parametrize("location", ["file:///etc/shadow", "gopher://127.0.0.1/", "http://169.254.169.254/latest"])
def test_redirects_are_checked_at_each_hop(site, httpserver, location):
    answer = Response(status=302, headers={"Location": location})
    httpserver.expect_request("/away.raw").respond_with_response(answer)
    fails(site, httpserver.url_for("/away.raw"), "refused" if "169" not in location else "public address")


def test_http_images_are_fetched_once_and_cached(site, httpserver, bootchain):
    image = bootchain("web.raw", folder=site.images)
    requests = []

    def serve(request):
        requests.append(request.headers.get("Host"))
        return Response(image.read_bytes(), headers={"ETag": '"v1"'})

    httpserver.expect_request("/web.raw").respond_with_handler(serve)
    for _ in range(2):
        assert site.call("start", name="bad", hda_image=httpserver.url_for("/web.raw"), mem_size=32)["success"]
        site.wait("bad", "halted")
        site.call("destroy", name="bad")
    assert len(requests) == 2  # bytes; the second time the head of the answer says that nothing changed
    assert set(requests) == {f"{httpserver.host}:{httpserver.port}"}


def test_unusable_target_is_reported_before_the_boot(site, bootchain):
    image = bootchain("nowhere.raw", folder=site.images)
    fails(site, f"file://{image}", "saved/no/such", hda_save_to=f"file://{site.saved}/no/such/folder.qcow2")


def test_request_beyond_the_host_is_refused_with_the_numbers(site, bootchain):
    image = bootchain("big.raw", folder=site.images)
    reply = site.start("bad", image, mem_size=10**7)
    assert (reply["code"], "10000000 MiB" in reply["message"]) == ("no_room", True)
    reply = site.start("bad", image, cpu_count=500)
    assert (reply["code"], "500 processors" in reply["message"]) == ("no_room", True)
    assert site.call("list")["vmachines"] == []


def test_unknown_vm_is_not_found(site):
    for verb in ("status", "modify", "destroy", "suspend", "resume", "shutdown", "save_retry"):
        assert site.call(verb, name="nobody")["code"] == "not_found"
        assert site.call(verb, uuid="6d6c7f0e-0000-4000-8000-0000000000ff")["code"] == "not_found"
        assert site.call(verb)["code"] == "bad_request"
