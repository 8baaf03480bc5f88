"""Validation of parameters from all interfaces: usual spellings are accepted, errors are helpful."""

from pathlib import Path

import msgspec
import pytest

from worker_service.contract import MODIFIABLE, Code, Spec
from worker_service.contract.uri_secrets import URI_PARAMETERS
from worker_service.contract.words import HOW
from worker_service.core.errors import BadRequest, Refused, SalternError
from worker_service.core.settings import ImagePolicy
from worker_service.operations import validation
from worker_service.transfer.uri import blank_size, parse

POLICY = ImagePolicy(read_roots=(Path("/srv/images"),), write_roots=(Path("/srv/saved"),))
UUID = "6d6c7f0e-0000-4000-8000-000000000000"
GOOD = {"name": "web01", "hda_image": "file:///srv/images/a.qcow2"}


def test_missing_parameters_get_their_defaults():
    assert validation.spec(GOOD, POLICY) == Spec(name="web01", hda_image="file:///srv/images/a.qcow2")


def test_strings_of_a_query_and_numbers_of_yaml_are_the_same():
    query = {**GOOD, "cpu_count": "2", "mem_size": "1024", "run_agent": "False", "soft_list": "nginx, git"}
    yaml = {**GOOD, "cpu_count": 2, "mem_size": 1024, "run_agent": False, "soft_list": ["nginx", "git"]}
    assert validation.spec(query, POLICY) == validation.spec(yaml, POLICY)


def test_word_for_keeping_a_disk_is_a_target_that_is_absent():
    assert validation.spec({**GOOD, "hda_save_to": "keep"}, POLICY) == validation.spec(GOOD, POLICY)
    assert validation.changes({"hda_save_to": "keep"}, POLICY).hda_save_to == "keep"
    for near in ("Keep", "keep ", "kept", "discard"):
        with pytest.raises(BadRequest, match=r"has no (scheme|blanks)"):
            validation.spec({**GOOD, "hda_save_to": near}, POLICY)


DIGEST = f"#sha256={'0a' * 32}"
SAVE = f"file:///srv/images/saved.qcow2{DIGEST}"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ({"hda": SAVE}, {"hda": SAVE}),
        (f'{{"hda": "{SAVE}"}}', {"hda": SAVE}),
    ],
)
def test_origin_names_saves_by_disk(value, found):
    assert validation.origin(value, validation.spec(GOOD, POLICY), POLICY) == found


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ({"hdb": SAVE}, "bad_request", "'hdb', and the VM has no such disk"),
        ({"cd": SAVE}, "bad_request", "'cd', and the VM has no such disk"),
        ({"hda": SAVE.partition("#")[0]}, "bad_request", "without a digest"),
        ({"hda": "blank:1G"}, "bad_request", "without a digest"),
        ({"hda": 5}, "bad_request", "origin is not right"),
        (["hda"], "bad_request", "origin is not right"),
        ("{", "bad_request", "origin is not JSON"),
        ({"hda": f"file:///etc/shadow{DIGEST}"}, "policy", "outside"),
        ({"hda": f"ftp://h/a{DIGEST}"}, "bad_request", "unknown"),
    ],
)
def test_origin_is_checked_as_an_image_is(value, code, words):
    with pytest.raises(SalternError, match=words) as refused:
        validation.origin(value, validation.spec(GOOD, POLICY), POLICY)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "given",
    [
        {"name": 123},
        {"name": True},
        {"name": ["web01"]},
        {"hda_image": 1.5},
        {"hda_save_to": False},
        {"network": None},
        {"network": True},
        {"hypervisor": True},
        {"run_policy": False},
        {"hostname": 42},
        {"minion_master": 10.1},
        {"soft_list": 1.22},
        {"soft_list": ["nginx", 5]},
        {"soft_list": "[5]"},
        {"ssh_keys": True},
    ],
    ids=str,
)
def test_value_that_should_be_a_word_is_refused(given):
    with pytest.raises(BadRequest) as refused:
        validation.spec({**GOOD, **given}, POLICY)
    assert HOW in str(refused.value)
    assert next(iter(given)) in str(refused.value)
    with pytest.raises(BadRequest) as refused:
        validation.action({"verb": "start", "uuid": UUID, "generation": 1, "params": {**GOOD, **given}})
    assert HOW in str(refused.value)


@pytest.mark.parametrize(
    "given", [{"uuid": 42}, {"owner": True}, {"verb": True}, {"params": {"hda_save_to": 1}}], ids=str
)
def test_command_with_a_value_that_is_no_word(given):
    with pytest.raises(BadRequest) as refused:
        validation.action({"verb": "modify", "uuid": UUID, "generation": 1, **given})
    assert HOW in str(refused.value)


@pytest.mark.parametrize("parameter", MODIFIABLE)
def test_change_that_is_no_word(parameter):
    with pytest.raises(BadRequest) as refused:
        validation.changes({parameter: True}, POLICY)
    assert HOW in str(refused.value)


@pytest.mark.parametrize(
    ("uuid", "name"), [(None, 7042), (None, 1.1), (None, True), (None, False), (None, ["a"]), (42, None), (0, "a")]
)
def test_identity_that_is_no_word(uuid, name):
    with pytest.raises(BadRequest) as refused:
        validation.identity(uuid, name)
    assert HOW in str(refused.value)


@pytest.mark.parametrize("name", ["0042", "1.10", "1e3", "0x2a", "1_000", "on", "null", "None", "2024-01-01"])
def test_new_vm_cannot_have_a_name_that_yaml_reads_otherwise(name):
    with pytest.raises(BadRequest) as refused:
        validation.check_new_name(name)
    assert HOW in str(refused.value)
    assert validation.identity(None, name) == (None, name)  # one that is here already


@pytest.mark.parametrize(
    "name",
    ["", "-rf", ".", "../x", "a/b", "a b", "x" * 64, "a\n", "a\0", "Ünï", "a</name>", "'; drop", "$(id)", "web01\n"],
)
def test_names_outside_the_pattern(name):
    with pytest.raises(BadRequest, match="name"):
        validation.spec({**GOOD, "name": name}, POLICY)


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
        validation.spec({**GOOD, parameter: value}, POLICY)
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
        validation.spec({**GOOD, "hda_image": uri}, POLICY)
    assert refused.value.code is code


SECRET = "c4nary"
WITH_SECRET = [
    f"https://host.test/a?X-Amz-Signature={SECRET}",
    f"https://host.test/a?token={SECRET}",
    f"http://:{SECRET}@host.test/a",
    f"file:///srv/images/a?sig={SECRET}",
    f"s3://bucket/a?AWSAccessKeyId={SECRET}",
    f"sftp://{SECRET}@host.test/a",
    f"salt://images/a?password={SECRET}",
]


@pytest.mark.parametrize("uri", WITH_SECRET)
@pytest.mark.parametrize("parameter", URI_PARAMETERS)
def test_secret_in_any_uri_is_refused_with_advice(parameter, uri):
    """Whatever the interface: in a job of Salt it would stay in the job cache, and in the record."""
    with pytest.raises(Refused, match=r"has a (secret|user) in it.*images\.stores") as refused:
        validation.spec({**GOOD, parameter: uri}, POLICY)
    assert refused.value.code is Code.POLICY
    assert SECRET not in str(refused.value)
    if parameter in MODIFIABLE:
        with pytest.raises(Refused, match="in it"):
            validation.changes({parameter: uri}, POLICY)
    if not parameter.endswith("_save_to"):
        with pytest.raises(Refused, match="in it"):
            validation.check_image(uri, POLICY)  # as for a prefetch


def test_no_error_repeats_a_secret():
    for uri in (
        f"http://h:{SECRET}/x",
        f"https://ann:my {SECRET}@h/x",
        f"https://h/a?sig={SECRET}#x",
        f"ann:{SECRET}@h",
    ):
        with pytest.raises(SalternError) as refused:
            validation.spec({**GOOD, "hda_image": uri}, POLICY)
        assert SECRET not in str(refused.value)
    assert SECRET not in str(SalternError(f"curl: https://h/a?sig={SECRET} failed"))


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
        validation.spec({**GOOD, "hda_save_to": uri}, POLICY)


def test_empty_save_to_discards():
    assert validation.spec({**GOOD, "hda_save_to": ""}, POLICY).hda_save_to == ""


def test_schemes_are_named():
    with pytest.raises(BadRequest, match="file, http, https"):
        validation.spec({**GOOD, "hda_image": "ftp://host/a"}, POLICY)


def test_vm_is_named_by_uuid_or_name():
    uuid = "6D6C7F0E-0000-4000-8000-000000000000"
    assert validation.identity(uuid, "b") == (uuid.lower(), None)
    assert validation.identity(None, "b") == (None, "b")
    for nothing in (None, ""):
        with pytest.raises(BadRequest, match="names no VM"):
            validation.identity(nothing, nothing)
    with pytest.raises(BadRequest, match="not a uuid"):
        validation.identity("../../etc", None)


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, []])
def test_generations_that_are_none(value):
    with pytest.raises(BadRequest, match="generation"):
        validation.generation(value)


def test_generation_is_a_number():
    assert validation.generation(None) is None
    assert validation.generation("") is None
    assert validation.generation("7") == validation.generation(7) == 7


def test_software_list_asks_for_the_agent():
    assert validation.spec({**GOOD, "soft_list": "nginx"}, POLICY).wants_agent
    assert not validation.spec({**GOOD, "soft_list": "nginx", "run_agent": False}, POLICY).wants_agent
    assert validation.spec({**GOOD, "run_agent": True}, POLICY).wants_agent
    assert not validation.spec(GOOD, POLICY).wants_seed


SOFTWARE = ("nginx", "postgresql-client", "g++", "libc6:i386", "python3.11", "nginx=1.22*", "a=2:1.0~rc1+b-1", "7zip")


def test_software_list_comes_in_each_form():
    for given in (",".join(SOFTWARE), list(SOFTWARE), msgspec.json.encode(SOFTWARE).decode(), " , ".join(SOFTWARE)):
        assert validation.spec({**GOOD, "soft_list": given}, POLICY).soft_list == SOFTWARE
    assert validation.spec({**GOOD, "soft_list": ""}, POLICY).soft_list == ()


@pytest.mark.parametrize(
    "entry",
    ["-y", "--purge", "nginx-", "a b", "a;b", "$(id)", "`id`", "a|b", "a&b", "a/b", "../a", "@group", "~nx", "?x", "a*",
     "a=", "a=1 2", "a=$x", "a\nb", "nginx\n", "a'b", 'a"b', "a\\b", "ä", "x" * 200, "a=" + "1" * 100],
)  # fmt: skip
def test_invalid_package_is_refused(entry):
    with pytest.raises(BadRequest, match="soft_list"):
        validation.spec({**GOOD, "soft_list": [entry]}, POLICY)


@pytest.mark.parametrize("value", [["a"] * 2, [f"p{n}" for n in range(201)], '["a"', "[1]", [["a"]], {"a": 1}, [1]])
def test_invalid_package_list_is_refused(value):
    with pytest.raises(BadRequest):
        validation.spec({**GOOD, "soft_list": value}, POLICY)


IMAGES = "file:///srv/images"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzP me@host"


def test_keys_with_comments_are_accepted_in_each_form():
    keys = (f"{KEY} at home", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB Jürgen: [work], 2  blanks")
    for given in (
        "\n".join(keys),
        ", ".join(keys),
        list(keys),
        [f"{key}\n" for key in keys],
        msgspec.json.encode(keys).decode(),
    ):
        assert validation.spec({**GOOD, "ssh_keys": given}, POLICY).ssh_keys == keys
        action = {"verb": "start", "uuid": UUID, "generation": 1, "params": {**GOOD, "ssh_keys": given}}
        assert validation.action(action).params.ssh_keys == keys


def test_guest_parameters_are_accepted():
    made = validation.spec(
        {
            **GOOD,
            "hostname": "www.example.com",
            "ssh_keys": KEY,
            "user_data": "file:///srv/images/u",
            "minion_master": "s",
        },
        POLICY,
    )
    assert (made.hostname, made.ssh_keys, made.minion_master) == ("www.example.com", (KEY,), "s")
    assert made.wants_seed
    assert not made.wants_agent


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("hostname", "a_b"), ("hostname", "-a"), ("hostname", "a..b"), ("hostname", "a\nb"), ("hostname", "x" * 64),
        ("ssh_keys", "nonsense"), ("ssh_keys", f'command="id" {KEY}'), ("ssh_keys", [f"{KEY}\n{KEY}"]),
        ("ssh_keys", "-----BEGIN OPENSSH PRIVATE KEY-----"), ("ssh_keys", [KEY] * 51),
        ("minion_master", "a b"), ("minion_master", "-a"), ("minion_master", "a\nb: c"),
        ("user_data", "#cloud-config\npassword: x"), ("user_data", "file:///etc/shadow"), ("user_data", "ftp://a/b"),
    ],
)  # fmt: skip
def test_invalid_guest_parameters_are_refused(parameter, value):
    with pytest.raises(SalternError) as caught:
        validation.spec({**GOOD, parameter: value}, POLICY)
    assert "password" not in str(caught.value)


def test_blank_size_is_parsed():
    assert blank_size("blank:512M") == 512 << 20
    assert blank_size("blank:20G") == 20 << 30
    assert blank_size("file:///a") is None


def test_password_is_not_shown():
    uri = parse("https://user:geheim@host/a.qcow2#sha256=" + "0" * 64)
    assert "geheim" not in str(uri)
    assert uri.sha256 == "0" * 64
    assert uri.text == "https://user:geheim@host/a.qcow2"
