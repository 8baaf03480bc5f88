"""What comes through a door: accepted as people write it, refused with a sentence that helps."""

from pathlib import Path

import pytest

from worker_service import requests
from worker_service.contract import Code, Spec
from worker_service.errors import BadRequest, Refused, SalternError
from worker_service.images.uri import blank_size, parse
from worker_service.settings import Images

POLICY = Images(read_roots=(Path("/srv/images"),), write_roots=(Path("/srv/saved"),))
GOOD = {"name": "web01", "hda_image": "file:///srv/images/a.qcow2"}


def test_defaults():
    assert requests.spec(GOOD, POLICY) == Spec(name="web01", hda_image="file:///srv/images/a.qcow2")


def test_strings_of_a_query_and_numbers_of_yaml_are_the_same():
    query = {**GOOD, "cpu_count": "2", "mem_size": "1024", "run_agent": "False", "soft_list": "nginx, git"}
    yaml = {**GOOD, "cpu_count": 2, "mem_size": 1024, "run_agent": False, "soft_list": ["nginx", "git"]}
    assert requests.spec(query, POLICY) == requests.spec(yaml, POLICY)
    assert requests.spec({**GOOD, "name": 123}, POLICY).name == "123"


@pytest.mark.parametrize(
    "name",
    ["", "-rf", ".", "../x", "a/b", "a b", "x" * 64, "a\n", "a\0", "Ünï", "a</name>", "'; drop", "$(id)", "web01\n"],
)
def test_names_outside_the_pattern(name):
    with pytest.raises(BadRequest, match="name"):
        requests.spec({**GOOD, "name": name}, POLICY)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("hypervisor", "qemu"),
        ("sys_arch", "arm64"),
        ("cpu_count", 0),
        ("cpu_count", "many"),
        ("mem_size", 0),
        ("mem_size", -1),
        ("mem_size", "NaN"),
        ("mem_size", "0x10"),
        ("mem_size", 10**12),
        ("hda_image", None),
        ("network", "tap0"),
        ("network", "bridge="),
        ("run_agent", "maybe"),
        ("run_policy", "sometimes"),
        ("worker", "w1"),
        ("epoch", 3),
    ],
)
def test_parameters_that_are_not_right(parameter, value):
    with pytest.raises(BadRequest) as refused:
        requests.spec({**GOOD, parameter: value}, POLICY)
    assert parameter in str(refused.value) or "Object missing" in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("ftp://host/a", Code.BAD_REQUEST),
        ("nbd://host/a", Code.BAD_REQUEST),
        ("json:{}", Code.BAD_REQUEST),
        ("data:,x", Code.BAD_REQUEST),
        ("/srv/images/a.qcow2", Code.BAD_REQUEST),
        ("file:///srv/images/a b", Code.BAD_REQUEST),
        ("file:///srv/images/a#md5=0", Code.BAD_REQUEST),
        ("http://[::1", Code.BAD_REQUEST),
        ("file:///etc/shadow", Code.POLICY),
        ("file:///srv/images", Code.POLICY),
        ("file:///srv/images/../../etc/shadow", Code.POLICY),
        ("file:///srv/images/%2e%2e/%2e%2e/etc/shadow", Code.POLICY),
        ("file://evil/srv/images/a", Code.POLICY),
        ("file:////proc/self/environ", Code.POLICY),
        ("file:///srv/imagesx/a", Code.POLICY),
        ("http:///a", Code.POLICY),
        ("blank:", Code.BAD_REQUEST),
        ("blank:20", Code.BAD_REQUEST),
        ("blank:-1G", Code.BAD_REQUEST),
    ],
)
def test_image_uris_that_could_never_be_fetched(uri, code):
    with pytest.raises(SalternError) as refused:
        requests.spec({**GOOD, "hda_image": uri}, POLICY)
    assert refused.value.code is code


@pytest.mark.parametrize(
    "uri",
    [
        "file:///srv/images/a",
        "file:///etc/cron.d/x",
        "http://host/a",
        "blank:1G",
        "file:///srv/saved/a#sha256=" + "0" * 64,
    ],
)
def test_places_that_could_never_be_saved_to(uri):
    with pytest.raises(SalternError):
        requests.spec({**GOOD, "hda_save_to": uri}, POLICY)


def test_an_empty_save_to_discards():
    assert requests.spec({**GOOD, "hda_save_to": ""}, POLICY).hda_save_to == ""


def test_the_schemes_are_named():
    with pytest.raises(BadRequest, match="file, http, https"):
        requests.spec({**GOOD, "hda_image": "ftp://host/a"}, POLICY)


def test_identity():
    uuid = "6D6C7F0E-0000-4000-8000-000000000000"
    assert requests.identity(uuid, "b") == (uuid.lower(), None)
    assert requests.identity(None, "b") == (None, "b")
    for nothing in (None, ""):
        with pytest.raises(BadRequest, match="Which VM"):
            requests.identity(nothing, nothing)
    with pytest.raises(BadRequest, match="no uuid"):
        requests.identity("../../etc", None)


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, []])
def test_generations_that_are_none(value):
    with pytest.raises(BadRequest, match="generation"):
        requests.generation(value)


def test_generations():
    assert requests.generation(None) is None
    assert requests.generation("") is None
    assert requests.generation("7") == requests.generation(7) == 7


def test_a_software_list_asks_for_the_agent():
    assert requests.spec({**GOOD, "soft_list": "nginx"}, POLICY).wants_agent
    assert not requests.spec({**GOOD, "soft_list": "nginx", "run_agent": False}, POLICY).wants_agent
    with pytest.raises(Refused, match="agent"):
        requests.refuse_agent(requests.spec({**GOOD, "run_agent": True}, POLICY))


def test_blank_sizes():
    assert blank_size("blank:512M") == 512 << 20
    assert blank_size("blank:20G") == 20 << 30
    assert blank_size("file:///a") is None


def test_a_password_is_not_shown():
    uri = parse("https://user:geheim@host/a.qcow2#sha256=" + "0" * 64)
    assert "geheim" not in str(uri)
    assert uri.sha256 == "0" * 64
    assert uri.text == "https://user:geheim@host/a.qcow2"
