"""The command line against a master over HTTP: its output and its exit codes."""

import asyncio
import json
import sys

import pytest
import yaml

from tests.functional.master.conftest import TOKEN
from worker_service.contract import Code, Status

IMAGE = ("--hda-image", "file:/srv/images/web.qcow2")


@pytest.mark.parametrize(
    ("words", "typed", "code"),
    [
        (("list", "-o", "yaml", "--columns", "name"), "", 0),
        (("history", "web01"), "", 0),
        (("--help",), "", 0),
        (("show", "ghost"), "", 3),
        (("frobnicate",), "", 2),
        (("login", "uma"), "wrong horse battery\n", 5),
    ],
)
async def test_process_behaves_like_the_called_function(saltern, process, served, words, typed, code):
    await served.create(run_policy="manual")
    message = await process(*words, typed=typed)
    assert message[0] == code
    assert message == await saltern(*words, typed=typed)


async def test_commands_lead_through_a_whole_life(saltern, served):
    code, out, err = await saltern("create", "web01", *IMAGE, "--mem-size", "256", "-o", "json")
    assert code == 0, err
    assert (json.loads(out)["status"], json.loads(out)["spec"]["mem_size"]) == ("running", 256)
    code, out, _ = await saltern("list")
    assert code == 0
    assert out.split("\n")[0].split() == ["NAME", "STATUS", "DESIRED", "WORKER", "OBSERVED", "MESSAGE"]
    assert out.split("\n")[1].split()[:4] == ["web01", "running", "running", "w1"]
    assert await saltern("list", "-o", "name") == (0, "web01\n", "")
    code, out, _ = await saltern("show", "web01")
    assert (code, "file:/srv/images/web.qcow2" in out) == (0, True)
    for verb, status in (("suspend", "paused"), ("resume", "running"), ("shutdown", "halted"), ("start", "running")):
        code, out, err = await saltern(verb, "web01", "-o", "json")
        assert (code, json.loads(out)["status"]) == (0, status), err
    assert (await saltern("wait", "web01", "--for", "running"))[0] == 0
    code, out, _ = await saltern("destroy", "web01", "-o", "json")
    assert (code, json.loads(out)["status"]) == (0, "destroyed")
    await served.poll()  # a wait that was long may have asked while it ran
    code, out, _ = await saltern("workers")
    assert (code, "8.0 of 8.0 GiB" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "ghost"), 3, "There is no VM 'ghost'"),
        (("create", "-o", "json"), 2, "Missing"),
        (("create", "web01", "--hda-image", "ftp://host/a"), 2, "--hda-image: unknown scheme 'ftp'"),
        (("create", "web01", *IMAGE, "--mem-size", "999999"), 1, "the largest worker has 8192 MiB"),
        (("frobnicate",), 2, "No such command"),
        (("--url", "http://127.0.0.1:1", "list"), 1, "No master answers at http://127.0.0.1:1"),
        (("--url", "nonsense", "list"), 2, "is not a URL"),
        (("--token-file", "/nowhere/token", "list"), 1, "Cannot read the token from /nowhere/token"),
    ],
)
async def test_errors_are_one_sentence_and_an_exit_code(saltern, words, code, message):
    token = "" if "--token-file" in words else TOKEN
    got, _, err = await saltern(*words, token=token)
    assert (got, message in err) == (code, True), err


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_command_without_permission_is_denied(saltern, token):
    code, _, err = await saltern("list", token=token)
    assert (code, "SALTERN_TOKEN_FILE" in err) == (5, True)


async def test_waiting_for_an_unknown_status_is_refused(saltern):
    code, _, err = await saltern("wait", "web01", "--for", "hlted")
    assert code == 2
    assert "hlted" in err
    assert "halted" in err


async def test_waiting_ends_on_failure_and_on_timeout(saltern, served):
    served.salt.by_itself = False
    code, _, err = await saltern("create", "slow", *IMAGE, "--timeout", "0.1")
    assert code == 4
    assert "Not within 0.1 s, it continues: slow p" in err  # pending or preparing: as far as it came
    served.salt.workers["w1"].refusals["start"] = Code.POLICY
    code, _, err = await saltern("create", "bad", *IMAGE)
    assert code == 1
    assert "bad is failed: w1 refuses to start it: start is refused" in err
    served.salt.lose_jobs = True
    code, _, err = await saltern("destroy", "slow", "--timeout", "0.1")
    assert (code, "not observed within 0.1 s" in err) == (4, True)


async def test_command_line_carries_no_database():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, master_service.cli.app\n"
        "print([name for name in ('sqlalchemy', 'fastapi', 'rich', 'salt') if name in sys.modules])",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"


RUNS = "web01 is running on w1. Its disk will be kept on its worker when it halts.\n"
EXIT_CODES = ["0  ok", "1  failed", "2  usage", "3  not found", "4  timeout", "5  denied"]


async def test_help_lists_the_exit_codes(saltern):
    code, out, _ = await saltern("--help")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    for message in EXIT_CODES:
        assert any(line.startswith(message) for line in lines), message


async def test_verbs_print_a_line_and_lists_a_table(saltern):
    code, out, err = await saltern("create", "web01", *IMAGE, "--label", "role=web", "--mem-size", "64")
    assert (code, out) == (0, RUNS), err
    assert (await saltern("suspend", "web01"))[1] == "suspend of web01: done, it is paused.\n"
    assert (await saltern("resume", "web01"))[1] == "resume of web01: done, it is running.\n"
    code, out, err = await saltern("modify", "web01", "--label", "role=db", "--label", "a=b", "--cd-image", "")
    assert (code, out) == (0, "web01 was modified: --cd-image, labels.\n"), err
    out = (await saltern("list", "--columns", "name,STATUS,spec.mem_size,labels.role", "--no-header"))[1]
    assert out.split() == ["web01", "running", "64", "db"]
    assert (await saltern("list", "--columns", "colour"))[0] == 2
    assert (await saltern("list", "--label", "role=web", "-o", "name"))[1] == ""
    assert yaml.safe_load((await saltern("list", "-o", "yaml"))[1])[0]["labels"] == {"role": "db", "a": "b"}
    out = (await saltern("list", "-o", "wide"))[1]
    assert "64 MiB" in out
    out = (await saltern("history", "web01", "--no-header"))[1]
    assert out.split("\n")[0].split()[2:] == ["desired", "admin", "-", "running", "create"]
    assert (await saltern("plan"))[1] == "All VMs are in their desired state.\n"
    code, out, err = await saltern("destroy", "web01")
    assert (code, out) == (0, "destroy of web01: done, it is destroyed.\n"), err


async def test_dry_run_changes_nothing(saltern):
    code, out, err = await saltern("create", "web01", *IMAGE, "--dry-run")
    assert code == 0, err
    assert "w1 was chosen among 1 that fit; w1: It would fetch 3 MiB and start." in out
    assert "  hda: file:/srv/images/web.qcow2 is to be fetched, 3.0 MiB\n" in out
    assert (await saltern("list", "-o", "name"))[1] == ""
    await saltern("create", "web01", *IMAGE)
    code, out, err = await saltern("shutdown", "web01", "--dry-run")
    assert (code, "  desired: running -> halted\n" in out) == (0, True), err
    assert (await saltern("wait", "web01"))[0] == 0


async def test_dry_run_fails_if_the_worker_would_refuse(saltern, tmp_path):
    shadow = ("--hda-image", "file:///etc/shadow")
    for form in ("table", "json", "name"):
        code, out, err = await saltern("create", "web01", *shadow, "--dry-run", "-o", form)
        assert (code, "w1 would refuse this start." in err) == (1, True), out + err
    (tmp_path / "vms.yaml").write_text("vmachines: [{name: web01, hda_image: 'file:///etc/shadow'}]")
    code, out, err = await saltern("apply", "-f", "vms.yaml", "--dry-run")
    assert (code, "w1 refuses it: file:///etc/shadow lies outside" in out) == (1, True)
    assert "Workers would refuse to start web01." in err


async def test_shells_complete_the_names_of_vms(process, served):
    for name in ("web01", "web02", "db01"):
        await served.create(name=name, run_policy="manual")
    words = {"_SALTERN_COMPLETE": "complete_bash", "COMP_WORDS": "saltern show web", "COMP_CWORD": "2"}
    _, out, err = await process(environment=words)
    assert out.split() == ["web01", "web02"], err


FILE = """
vmachines:
  - name: web01
    hda_image: file:/srv/images/web.qcow2
    mem_size: 64
    labels: {group: web}
  - {name: web02, hda_image: "file:/srv/images/web.qcow2", mem_size: 64, state: halted, labels: {group: web}}
"""


async def test_file_is_applied_once_and_its_export_is_equal(saltern, tmp_path):
    (tmp_path / "vms.yaml").write_text(FILE)
    apply = ("apply", "-f", "vms.yaml")
    code, out, err = await saltern(*apply, "--dry-run")
    assert (code, "+ web01: create (start: w1 was chosen" in out) == (0, True), out + err
    assert (await saltern("list", "-o", "name"))[1] == ""
    code, out, err = await saltern(*apply)
    assert (code, out.splitlines()[-2:]) == (0, ["web01: create: it is running.", "web02: create: it is halted."]), err
    assert (await saltern(*apply))[:2] == (0, "All VMs are in the state of the file.\n")
    exported = (await saltern("export"))[1]
    (tmp_path / "exported.yaml").write_text(exported)
    assert (await saltern("apply", "-f", "exported.yaml"))[:2] == (0, "All VMs are in the state of the file.\n")
    assert {vm["name"]: vm["state"] for vm in yaml.safe_load(exported)["vmachines"]} == {
        "web01": "running",
        "web02": "halted",
    }
    changed = exported.replace("state: running", "state: paused\n  hda_save_to: file:/srv/saved/a.qcow2")
    (tmp_path / "vms.yaml").write_text(changed)
    code, out, err = await saltern(*apply)
    assert code == 0, err
    assert "~ web01: modify" in out
    assert "    hda_save_to: - -> file:/srv/saved/a.qcow2\n" in out
    assert "    desired: running -> paused\n" in out
    assert out.splitlines()[-1] == "web01: suspend: it is paused."
    for name in ("web01", "web02"):
        assert (await saltern("destroy", name))[0] == 0
    (tmp_path / "exported.yaml").write_text(exported)
    assert (await saltern("apply", "-f", "exported.yaml"))[0] == 0
    assert (await saltern("export"))[1] == exported


async def test_surplus_vms_need_an_explicit_flag_and_label(saltern, tmp_path, served):
    (tmp_path / "vms.yaml").write_text(FILE)
    for name, labels in (("old", {"group": "web"}), ("other", {"group": "db"})):
        await served.create(name=name, labels=labels, run_policy="manual")
    assert (await saltern("apply", "-f", "vms.yaml"))[0] == 0
    code, out, err = await saltern("apply", "-f", "vms.yaml", "--prune", "group=web")
    assert (code, "- old: destroy" in out, "--yes" in err) == (2, True, True)
    assert (await saltern("apply", "-f", "vms.yaml", "--prune", "group=web", "--yes"))[0] == 0
    assert (await saltern("list", "-o", "name"))[1].split() == ["other", "web01", "web02"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "one list of VMs under `vmachines:`"),
        ("vmachines: {a: b}", "one list of VMs"),
        ("vmachines: [{hda_image: blank:1G}]", "VM number 1 has no name"),
        ("vmachines: [{name: a}, {name: a}]", "a occurs more than once"),
        ("vmachines: [{name: a, state: up}]", "the state of a must be one of"),
        ("vmachines: [{name: a, state: on}]", "state is the boolean true, not a word. YAML"),
        ("vmachines: [{name: 0042}]", "VM number 1: name is the number 34, not a word. YAML"),
        ("vmachines: [{name: 12:30:00}]", "name is the number 45000"),
        ("vmachines: [{name: 2024-01-01}]", "name is a date"),
        ("vmachines: [{name: 2024-13-45}]", "is not YAML: month must be"),
        ("vmachines: [{name: '0042', hda_image: 'blank:1G'}]", "The name '0042' reads as a number"),
        ("vmachines: [{name: a, labels: {on: x}}]", "The name of a label is the boolean true"),
        ("vmachines: [{name: a, labels: {tier: 1.10}}]", "The label tier is the number 1.1"),
        ("vmachines: [{name: a, soft_list: [nginx, 5]}]", "An entry of soft_list is the number 5"),
        ("vmachines: [{name: a, no: x}]", "The name of a parameter is the boolean false"),
        ("vmachines: [{name: a, hda_image: 'ftp://x/y'}]", "unknown scheme"),
        ("vmachines: [{name: a, hda_image: 'blank:1G', colour: red}]", "colour: is not a parameter"),
        ("vmachines: [}", "is not YAML"),
    ],
)
async def test_files_that_make_no_sense(saltern, tmp_path, text, message):
    (tmp_path / "vms.yaml").write_text(text)
    code, _, err = await saltern("apply", "-f", "vms.yaml")
    assert (code, message in err) == (2, True), err


async def test_lists_come_as_the_contract_has_them(saltern, tmp_path):
    key, other = (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzP me  at home",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB J\u00fcrgen: a, b",
    )
    lists = ["--soft-list", "nginx,git", "--soft-list", "curl", "--ssh-keys", f"{key}\n{other}\n"]
    assert (await saltern("create", "web01", "--hda-image", "blank:1G", "--run-policy", "manual", *lists))[0] == 0
    spec = json.loads((await saltern("show", "web01", "-o", "json"))[1])["spec"]
    assert (spec["soft_list"], spec["ssh_keys"]) == (["nginx", "git", "curl"], [key, other])
    entry = {"name": "web01", "hda_image": "blank:1G", "run_policy": "manual", "state": "halted"}
    for keys in (f"{key}\n{other}\n", [f"{key}\n", other]):
        entry |= {"soft_list": "nginx, git,curl", "ssh_keys": keys}
        (tmp_path / "vms.yaml").write_text(json.dumps({"vmachines": [entry]}))
        code, out, err = await saltern("apply", "-f", "vms.yaml")
        assert (code, "in the state of the file" in out) == (0, True), out + err


async def test_unchangeable_parameter_is_reported(saltern, tmp_path, served):
    await served.create(name="web01", run_policy="manual")
    (tmp_path / "vms.yaml").write_text("vmachines: [{name: web01, mem_size: 99, hda_image: 'blank:1G'}]")
    code, _, err = await saltern("apply", "-f", "vms.yaml")
    assert (code, "mem_size is 256, the file has 99" in err) == (1, True), err


async def test_protected_vm_is_destroyed_by_no_way(saltern, served, tmp_path):
    image = "file:/srv/images/web.qcow2"
    code, _, err = await saltern("create", "web01", "--hda-image", image, "--protect", "--label", "group=web")
    assert code == 0, err
    await served.create(name="web02", run_policy="manual")
    assert "yes" in (await saltern("list", "-o", "wide", "--columns", "name,protected", "--no-header"))[1]
    assert json.loads((await saltern("show", "web01", "-o", "json"))[1])["protected"] is True
    refusal = "web01 is protected, so it is not destroyed. Lift that first: saltern unprotect web01."
    code, _, err = await saltern("destroy", "web01", "web02", "-y")
    assert (code, refusal in err) == (1, True), err
    assert (await saltern("list", "-o", "name"))[1] == "web01\n"
    (tmp_path / "vms.yaml").write_text("vmachines: []")
    code, _, err = await saltern("apply", "-f", "vms.yaml", "--prune", "group=web", "--yes")
    assert (code, refusal in err) == (1, True), err
    for method, path in (("DELETE", "/vmachines/web01"), ("POST", "/vmachines/web01/destroy")):
        answer = await served.http.request(method, path, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "protected: true" in (await saltern("export"))[1]
    (tmp_path / "vms.yaml").write_text(f"vmachines: [{{name: web01, hda_image: '{image}', protected: false}}]")
    assert (await saltern("apply", "-f", "vms.yaml", "--yes"))[0] == 0
    assert (await served.show())["protected"] is False
    code, out, err = await saltern("protect", "web01")
    assert (code, out) == (0, "web01 is protected: this master refuses to destroy it.\n"), err
    code, out, err = await saltern("unprotect", "web01", "--dry-run")
    assert (code, "protected: true -> false" in out) == (0, True), err
    assert (await saltern("modify", "web01", "--no-protect"))[0] == 0
    assert (await saltern("modify", "web01", "--protect"))[0] == 0
    assert (await saltern("unprotect", "web01"))[1] == "web01 may be destroyed.\n"
    assert (await saltern("destroy", "web01", "-y"))[0] == 0


async def test_schema_of_files_is_published(saltern):
    schema = json.loads((await saltern("apply", "--schema"))[1])
    assert schema["properties"]["vmachines"]["items"]["$ref"] == "#/$defs/DesiredVM"
    assert schema["$defs"]["DesiredVM"]["properties"]["state"]["enum"] == ["running", "halted", "paused"]


async def test_doctor_finds_nothing_where_all_is_well(saltern, served):
    code, out, err = await saltern("doctor")
    assert code == 0, out + err
    parts = [line.split(":")[0].removeprefix("ok").strip() for line in out.splitlines()]
    own = ["master", "token", "database", "salt api", "event stream", "daemons"]
    assert parts == [*own, "workers", "salt master", "worker w1", "VMs"]


async def test_doctor_reports_each_fault_with_its_fix(saltern, served):
    vm = await served.create()
    await served.status("running")
    served.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    served.salt.report("w1", vm["uuid"])
    await served.status("failed")
    served.salt.silent.add("w1")
    await served.poll()
    served.salt.down = True
    code, out, _ = await saltern("doctor")
    assert code == 1
    faults = [line for line in out.splitlines() if line.startswith("FAULT")]
    assert [fault.split(":")[0] for fault in faults] == [
        "FAULT salt api", "FAULT workers", "FAULT worker w1", "FAULT VM web01",
    ]  # fmt: skip
    assert out.count("      fix: ") == len(faults)
    assert "saltern save-retry web01" in out
    code, out, _ = await saltern("--url", "http://127.0.0.1:1", "doctor")
    assert (code, "FAULT master: No master answers" in out) == (1, True)
    code, out, _ = await saltern("doctor", token="wrong")
    assert (code, "FAULT token:" in out) == (1, True)


async def test_workers_are_drained_and_fenced_and_users_listed(saltern, served):
    await served.create()
    await served.status("running")
    assert (await saltern("drain", "w1"))[:2] == (0, "w1 gets no new VMs.\n")
    assert "reachable, drained" in (await saltern("workers"))[1]
    for words in (("list",), ("list", "-o", "wide")):
        assert "w1 (drained)" in (await saltern(*words))[1]
    assert "Worker w1 is drained: it gets no new VMs." in (await saltern("show", "web01"))[1]
    code, out, _ = await saltern("doctor")
    assert (code, "ok    worker w1: drained" in out) == (0, True), out
    assert (await saltern("undrain", "w1", "--dry-run"))[1].startswith("Nothing was changed.")
    assert (await saltern("undrain", "w1"))[0] == 0
    code, _, err = await saltern("fence", "w1")
    assert (code, "--i-have-fenced" in err) == (2, True)
    assert (await saltern("fence", "ghost", "--i-have-fenced", "ghost"))[0] == 3
    assert (await saltern("images", "-o", "name"))[:2] == (0, "")
    assert (await saltern("users", "-o", "name"))[:2] == (0, "admin\n")
    code, out, err = await saltern("tokens", "--no-header")
    assert (code, "admin" in out) == (0, True), err


async def test_notices_are_listed(saltern, served):
    vm = await served.create()
    await served.status("running")
    served.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    await served.poll()
    code, out, err = await saltern("notices")
    assert (code, "failed_to_save" in out, "web01" in out) == (0, True, True), err


async def test_verb_takes_several_names_and_is_tried_for_each(saltern, served):
    for name in ("web01", "web02"):
        await served.create(name=name)
        await served.status("running", name)
    code, out, err = await saltern("stop", "web01", "ghost", "web02")
    assert (code, out) == (3, "web01 is halted on w1.\nweb02 is halted on w1.\n"), err
    assert err.splitlines()[0].startswith("saltern: There is no VM 'ghost'")
    code, out, _ = await saltern("rm", "web01", "web02", "-o", "json")
    assert (code, [vm["status"] for vm in json.loads(out)]) == (0, ["destroyed", "destroyed"])


async def test_create_reads_paths_sizes_and_files_of_keys(saltern, tmp_path):
    (tmp_path / "id.pub").write_text("# mine\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7mJ9Q0 me\n")
    words = ("--hda-image", "./web.qcow2", "--mem-size", "1G", "--ssh-keys", "id.pub", "--user-data", "./user.yaml")
    code, out, err = await saltern("create", "web01", *words, "--no-wait", "-o", "json")
    assert code == 0, err
    spec = json.loads(out)["spec"]
    assert (spec["hda_image"], spec["mem_size"]) == (f"file://{tmp_path}/web.qcow2", 1024)
    assert spec["user_data"] == f"file://{tmp_path}/user.yaml"
    assert spec["ssh_keys"] == ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7mJ9Q0 me"]


async def test_whoami_and_audit_say_who_acts(saltern, served):
    assert (await saltern("whoami"))[1].startswith("admin is admin at http://127.0.0.1:")
    assert json.loads((await saltern("whoami", "-o", "json"))[1])["role"] == "admin"
    await saltern("create", "web01", *IMAGE, "--no-wait")
    await saltern("destroy", "web01", "--no-wait")
    code, out, err = await saltern("audit", "--since", "1h", "--no-header")
    assert code == 0, err
    acts = [line.split()[2:5] for line in out.splitlines()]
    assert acts.index(["admin", "create", "web01"]) < acts.index(["admin", "destroy", "web01"])
    assert json.loads((await saltern("audit", "--verb", "suspend", "-o", "json"))[1]) == []
    assert (await saltern("audit", "--since", "yesterday"))[0] == 2


async def test_other_names_and_explicit_lists_do_the_same(saltern, served):
    await served.create()
    await served.status("running")
    for one, other in (
        (("users",), ("users", "list")),
        (("tokens", "-o", "name"), ("tokens", "list", "-o", "name")),
        (("images",), ("images", "list")),
        (("workers", "-o", "json"), ("workers", "list", "-o", "json")),
        (("show", "web01", "-o", "name"), ("info", "web01", "-o", "name")),
    ):
        found = await saltern(*other)
        assert found[0] == 0, found
        assert (await saltern(*one))[0::2] == found[0::2]


@pytest.mark.parametrize(("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
async def test_completion_is_printed_for_a_shell(saltern, shell, sign):
    code, out, _ = await saltern("completion", shell)
    assert (code, sign in out) == (0, True)
    assert (await saltern("man"))[1].startswith(".TH SALTERN 1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("saltern us", ["users"]),
        ("saltern users ", ["list", "create"]),
        ("saltern stop we", ["web01"]),
        ("saltern workers show w", ["w1"]),
        ("saltern create a --hypervisor x", ["xen"]),
    ],
)
async def test_completion_knows_commands_and_names(saltern, served, words, expected):
    await served.create()
    complete = {"_SALTERN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code, out, err = await saltern(environment=complete)
    assert (code, [word for word in out.split() if word in expected]) == (0, expected), err


async def test_help_of_a_command_has_several_forms(saltern):
    expected = await saltern("users", "quota", "--help")
    assert expected[0] == 0
    assert await saltern("users", "quota", "-h") == expected
    assert (await saltern("help", "users", "quota"))[1].split("\n", 1)[1] == expected[1].split("\n", 1)[1]
    assert (await saltern("help"))[1] == (await saltern("-h"))[1]
    code, _, err = await saltern("help", "creat")
    assert (code, "Did you mean 'create'" in err) == (2, True)
    assert (await saltern("help", "create", "x"))[0] == 2


async def test_invalid_values_are_named_in_plain_words(saltern, served):
    await served.create(run_policy="manual")
    for words, message in (
        (("modify", "web01"), "give what to change; `saltern modify --help` lists the options"),
        (("start", "web01", "--timeout", "x"), "it is no number"),
        (("list", "-o", "xml"), "'-o' / '--output': 'xml' is not one of 'table'"),
        (("list", "--status", "on"), "saltern: --status: 'on' is no status"),
    ):
        code, _, err = await saltern(*words)
        assert (code, message in err) == (2, True), err
