"""Which folders the VMs of an owner reach: a table over schemes, owners and spellings."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from worker_service.contract import Code
from worker_service.core.errors import BadRequest, Refused, SalternError
from worker_service.core.settings import BearerStore, ImagePolicy, OpenStore, S3Store, SftpStore, load
from worker_service.transfer import credentials
from worker_service.transfer.registry import check_source, check_target
from worker_service.transfer.uri import parse

SECRET = Path("/etc/saltern/{owner}.secret")


def s3(**more):
    return S3Store(endpoint="https://minio.example", access_key_id="{owner}", secret_key_file=SECRET, **more)


def sftp(**more):
    return SftpStore(user="disks", known_hosts=Path("/k"), key_file=Path("/id"), **more)


POLICY = ImagePolicy(
    read_roots=(Path("/srv/images"), Path("/srv/saved/{owner}"), Path("/srv/saved/common")),
    write_roots=(Path("/srv/saved/{owner}"),),
    salt_roots=("images", "tenants/{owner}"),
    save_hosts=("open.example",),
    stores={
        "s3://disks": s3(),
        "s3://disks/{owner}/": s3(save=True),
        "s3://vault-{owner}": s3(save=True),
        "s3://lab": s3(owners=("ann", "lab-*")),
        "sftp://host/srv/images": sftp(),
        "sftp://host:22/srv/disks/{owner}": sftp(save=True),
        "sftp://old": sftp(save=True),
        "https://store.example/{owner}/": BearerStore(token_file=SECRET, save=True),
        "https://store.example/public": OpenStore(),
        "https://team.example": OpenStore(owners=("lab-*",), save=True),
    },
)

READS = {
    "file:///srv/images/a.qcow2": "all",
    "file:///srv/saved/ann/a.qcow2": "ann",
    "file:///srv/saved/bob/a.qcow2": "bob",
    "file:///srv/saved/anna/a.qcow2": "",
    "file:///srv/saved/common/a.qcow2": "all",
    "file:///srv/saved/ann": "",
    "file:///srv/saved/{owner}/a.qcow2": "",
    "salt://images/a.qcow2": "all",
    "salt://tenants/ann/a.qcow2": "ann",
    "salt://tenants/bob/a?saltenv=dev": "bob",
    "s3://disks/public/x": "",  # it might be the folder of an account
    "s3://disks/a.qcow2": "all",
    "s3://disks/ann/a.qcow2": "ann",
    "s3://disks/bob/sub/a.qcow2": "bob",
    "s3://vault-ann/a.qcow2": "ann",
    "s3://vault-bob/a.qcow2": "bob",
    "s3://lab/a.qcow2": "ann",
    "s3://other/a.qcow2": "",
    "sftp://host/srv/images/a": "all",
    "sftp://host:22/srv/disks/ann/a": "ann",
    "sftp://HOST//srv//disks//bob/a": "bob",
    "sftp://host/srv/disks/a": "",
    "sftp://host/srv/imagesx/a": "",
    "sftp://old/srv/a": "",
    "https://store.example/ann/a": "ann",
    "https://STORE.example:443//bob/a": "bob",
    "https://store.example/public/a": "all",
    "https://store.example/a": "",
    "https://store.example/ann/../bob/a": "bob",  # as every client resolves it
    "https://store.example/ann/%2e%2e/bob/a": "",
    "https://store.example/ann/%252e%252e/bob/a": "",
    "https://store.example/ann/..%2fbob/a": "",
    "https://store.example/ann/..;/bob/a": "",
    "http://store.example/ann/a": "",  # not its entry, and no way around it
    "https://team.example/a": "",
    "http://team.example/a": "",
    "https://any.example/a": "all",
}
"""URI -> who may read it: ann, bob, all with VMs of the site itself, or nobody."""

WRITES = {
    "file:///srv/images/a.qcow2": "",
    "file:///srv/saved/ann/a.qcow2": "ann",
    "file:///srv/saved/bob/a.qcow2?format=raw": "bob",
    "file:///srv/saved/common/a.qcow2": "",
    "file:///srv/saved/ann/a.qcow2.manifest.json": "",
    "s3://disks/ann/a.qcow2": "ann",
    "s3://disks/a.qcow2": "",
    "s3://vault-bob/a.qcow2": "bob",
    "sftp://host/srv/images/a": "",
    "sftp://host/srv/disks/ann/a": "ann",
    "sftp://host/srv/disks/ann/.ssh/../../bob/a": "",
    "sftp://host/root/.ssh/authorized_keys": "",
    "sftp://old/root/.ssh/authorized_keys": "",
    "https://store.example/ann/a": "ann",
    "https://store.example/public/a": "",
    "https://open.example/a": "all",
    "https://any.example/a": "",
}


def may(check, uri, owner):
    try:
        check(parse(uri), POLICY.for_owner(owner))
    except SalternError as err:
        return err.code not in (Code.POLICY, Code.BAD_REQUEST)
    return True


@pytest.mark.parametrize("owner", ["ann", "bob", ""])
@pytest.mark.parametrize(("check", "table"), [(check_source, READS), (check_target, WRITES)])
def test_owner_reaches_what_the_table_says(check, table, owner):
    readers = {"all": ("ann", "bob", ""), "ann": ("ann",), "bob": ("bob",), "": ()}
    wrong = {uri: who for uri, who in table.items() if may(check, uri, owner) is not (owner in readers[who])}
    assert wrong == {}


def test_policy_of_the_settings_is_that_of_the_site():
    """Code that forgets the owner reaches no one's folder."""
    policy = ImagePolicy(read_roots=(Path("/srv/{owner}"),))
    with pytest.raises(Refused, match="none yet"):
        check_source(parse("file:///srv/ann/a"), policy)


def test_refusal_names_the_own_folders_only():
    with pytest.raises(Refused) as refused:
        check_source(parse("s3://disks/ann/a"), POLICY.for_owner("bob"))
    assert "closed to the VMs of bob (open: s3://disks, s3://disks/bob/, s3://vault-bob)" in str(refused.value)
    with pytest.raises(Refused, match=r"\(/srv/saved/bob\)"):
        check_target(parse("file:///srv/saved/ann/a"), POLICY.for_owner("bob"))


def test_each_owner_has_credentials_of_his_own():
    found = credentials.store(POLICY.for_owner("ann"), parse("s3://disks/ann/a"), S3Store)
    assert (found.access_key_id, str(found.secret_key_file)) == ("ann", "/etc/saltern/ann.secret")


def test_store_without_a_folder_says_what_to_write():
    with pytest.raises(Refused, match=r'names no folder.*images.stores."sftp://old/srv/disks"'):
        check_target(parse("sftp://old/srv/a"), POLICY.for_owner("ann"))
    whole = ImagePolicy(stores={"sftp://old/": sftp(save=True)})
    check_target(parse("sftp://old/srv/a"), whole.for_owner(""))


def test_store_of_some_owners_is_closed_to_others():
    check_source(parse("https://team.example/a"), POLICY.for_owner("lab-1"))
    check_target(parse("https://team.example/a"), POLICY.for_owner("lab-1"))
    check_source(parse("s3://lab/a"), POLICY.for_owner("lab-1"))


def test_entry_for_everybody_divides_no_server():
    policy = ImagePolicy(stores={"https://store.example": BearerStore(token_file=SECRET)}).for_owner("ann")
    for uri in ("https://store.example/a/b", "http://store.example/a", "https://store.example:8443/a"):
        check_source(parse(uri), policy)


def test_root_for_reading_alone_gives_no_way_to_saved_disks():
    policy = ImagePolicy(read_roots=(Path("/srv"),), write_roots=(Path("/srv/saved/{owner}"),))
    for owner in ("ann", "bob", ""):
        with pytest.raises(Refused):
            check_source(parse("file:///srv/saved/ann/a"), policy.for_owner(owner))
        check_source(parse("file:///srv/images/a"), policy.for_owner(owner))
    check_target(parse("file:///srv/saved/ann/a"), policy.for_owner("ann"))


@pytest.mark.parametrize(("owners", "known"), [(("*",), True), (("ann",), False)])
def test_all_buckets_are_for_the_owners_of_that_entry(owners, known):
    policy = ImagePolicy(stores={"s3://*": s3(owners=owners)})
    check_source(parse("s3://any/a"), policy.for_owner("ann"))
    with nullcontext() if known else pytest.raises(Refused, match="closed to the VMs of bob"):
        check_source(parse("s3://any/a"), policy.for_owner("bob"))


def test_name_of_a_store_that_is_no_uri_is_refused(tmp_path):
    path = tmp_path / "worker.toml"
    path.write_text('[images.stores."https://[bad"]\nkind = "open"\n')
    with pytest.raises(BadRequest, match="Correct that line"):
        load(path)
