"""`saltern login`, `users`, `tokens` and `images` against a master over HTTP."""

import json
import stat

GOOD = "correct horse battery"
URI = "file:/srv/images/debian.qcow2"


async def test_user_is_made_logs_in_and_is_disabled(saltern, tmp_path):
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    code, out, err = await saltern("users", "create", "uma", "--password", "--dry-run", typed=f"{GOOD}\n")
    assert (code, "Nothing was changed" in out) == (0, True), err
    assert (await saltern("users", "create", "uma", "--password", typed=f"{GOOD}\n"))[0] == 0
    code, _, err = await saltern("login", "uma", token="", environment=home, typed="wrong horse\n")
    assert (code, "password is wrong" in err, "SALTERN_TOKEN" in err) == (5, True, False)
    code, out, err = await saltern("login", "uma", token="", environment=home, typed=f"{GOOD}\n")
    assert code == 0, err
    (kept,) = (tmp_path / "config/saltern").iterdir()
    assert (stat.S_IMODE(kept.stat().st_mode), str(kept) in out) == (0o600, True)
    assert await saltern("users", "-o", "name", token="", environment=home) == (0, "uma\n", "")
    assert (await saltern("users", "disable", "uma"))[1] == "uma is user, disabled.\n"
    assert (await saltern("list", token="", environment=home))[0] == 5
    await saltern("users", "enable", "uma")
    assert (await saltern("users", "modify", "uma"))[0] == 2
    assert (await saltern("users", "modify", "uma", "--role", "viewer"))[1] == "uma is viewer.\n"
    await saltern("login", "uma", token="", environment=home, typed=f"{GOOD}\n")
    assert (await saltern("logout", token="", environment=home))[1] == "You are logged out.\n"
    assert not kept.exists()
    assert (await saltern("logout", token="", environment=home))[0] == 1
    assert (await saltern("users", "delete", "uma"))[0] == 0
    assert (await saltern("users", "delete", "uma"))[0] == 3


async def test_token_is_shown_once_and_revoked(saltern, tmp_path):
    code, secret, message = await saltern("tokens", "create", "ci", "--scope", "read", "--file", "ci.token")
    assert (code, secret) == (0, ""), message
    file = tmp_path / "ci.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (await saltern("--token-file", "ci.token", "list", token=""))[0] == 0
    assert (await saltern("--token-file", "ci.token", "users", "create", "x", token=""))[0] == 5
    assert "exists already" in (await saltern("tokens", "create", "ci", "--file", "ci.token"))[2]
    token_id = message.split()[1]
    assert (await saltern("tokens", "revoke", token_id))[1] == f"{token_id} is revoked.\n"
    assert (await saltern("--token-file", "ci.token", "list", token=""))[0] == 5
    code, secret, _ = await saltern("tokens", "create", "again")
    assert (code, secret.startswith("saltern_")) == (0, True)


async def test_images_are_fetched_beforehand(saltern):
    assert (await saltern("images", "prefetch", URI, "--dry-run"))[1] == "w1: It would be asked to prefetch it.\n"
    assert (await saltern("images", "pin", URI))[0] == 1
    assert await saltern("images", "prefetch", URI, "--pin", "--no-wait") == (0, "w1: done\n", "")
    assert await saltern("images", "unpin", URI, "--worker", "w1") == (0, "w1: done\n", "")
    assert (await saltern("images", "prefetch", URI, "--worker", "ghost"))[0] == 3
    assert (await saltern("images", "--sizes"))[0] == 0
    assert (await saltern("images", "prefetch", "nope"))[0] == 2


async def test_vm_that_was_suspended_is_waited_for_until_it_runs_on(saltern):
    await saltern("create", "web01", "--hda-image", URI)
    await saltern("suspend", "web01")
    assert (await saltern("start", "web01"))[1] == "web01 is running on w1.\n"


async def test_limits_change_alone_and_are_shown_with_usage(saltern, served):
    await served.person("uma")
    code, out, err = await saltern("users", "quota", "uma", "--no-header")
    assert (code, out.split("\n")[0].split()) == (0, ["vms", "0", "unlimited"]), err
    code, out, err = await saltern("users", "quota", "uma", "--vms", "2", "--mem-mib", "1024", "--dry-run")
    assert (code, "Nothing was changed" in out) == (0, True), err
    assert json.loads((await saltern("users", "quota", "uma", "-o", "json"))[1])["limits"]["vms"] is None
    assert (await saltern("users", "quota", "uma", "--vms", "2", "--mem-mib", "1024"))[0] == 0
    limits = json.loads((await saltern("users", "quota", "uma", "-o", "json"))[1])["limits"]
    assert limits == {"vms": 2, "cpus": None, "mem_mib": 1024, "disk_mib": None}
    code, out, err = await saltern("users", "quota", "uma", "--vms", "unlimited", "--cpus", "4", "--no-header")
    assert (code, out.split("\n")[0].split()) == (0, ["vms", "0", "unlimited"]), err
    limits = json.loads((await saltern("users", "quota", "uma", "-o", "json"))[1])["limits"]
    assert limits == {"vms": None, "cpus": 4, "mem_mib": 1024, "disk_mib": None}
    assert (await saltern("users", "quota", "uma", "--cpus", "usual"))[0] == 0
    limits = json.loads((await saltern("users", "quota", "uma", "-o", "json"))[1])["limits"]
    assert limits == {"vms": None, "cpus": None, "mem_mib": 1024, "disk_mib": None}
    assert (await saltern("users", "quota", "uma", "--usual"))[0] == 0
    limits = json.loads((await saltern("users", "quota", "uma", "-o", "json"))[1])["limits"]
    assert set(limits.values()) == {None}
    assert (await saltern("users", "quota", "uma", "--vms", "many"))[0] == 2
    assert (await saltern("users", "quota", "uma", "--vms", "-1"))[0] == 2
    assert (await saltern("users", "quota", "uma", "--usual", "--vms", "1"))[0] == 2
    assert (await saltern("users", "quota", "ghost"))[0] == 3


async def test_user_sees_their_own_quota(saltern, served):
    await served.person("uma")
    assert (await saltern("users", "quota", "uma", "--cpus", "2"))[0] == 0
    token = "token-of-uma"
    assert (await saltern("create", "own", "--hda-image", URI, "--mem-size", "64", token=token))[0] == 0
    code, out, _ = await saltern("quota", token=token)
    assert (code, out.splitlines()[0].split()) == (0, ["AMOUNT", "USED", "LIMIT", "LEFT"])
    assert "processors    1     2          1" in out
    assert "VMs           1     unlimited  -" in out
    assert '"cpus": 2' in (await saltern("quota", "-o", "json", token=token))[1]
