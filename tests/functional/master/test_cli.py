"""The command line as a process of its own against a master over HTTP: what it prints, and its exit codes."""

import asyncio
import json
import sys

import pytest

from tests.functional.master.conftest import TOKEN
from worker_service.contract import Code

IMAGE = ("--hda-image", "file:/srv/images/web.qcow2")


@pytest.fixture
def saltern(served, tmp_path):
    """Run a command; (exit code, stdout, stderr)."""

    async def run(*words, token=TOKEN):
        url = str(served.http.base_url).removesuffix("/api/v1/")
        environment = {"SALTERN_URL": url, "SALTERN_TOKEN": token, "PATH": "/usr/bin:/bin", "PYTHONPATH": sys.path[0]}
        environment = {name: value for name, value in environment.items() if value}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from master_service.cli import main; main()",
            *words,
            env=environment,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode(), err.decode()

    return run


async def test_a_whole_life(saltern):
    code, out, err = await saltern("create", "web01", *IMAGE, "--mem-size", "256", "-o", "json")
    assert code == 0, err
    assert (json.loads(out)["status"], json.loads(out)["spec"]["mem_size"]) == ("running", 256)
    code, out, _ = await saltern("list")
    assert code == 0
    assert out.split("\n")[1].split() == ["NAME", "STATUS", "WANTED", "WORKER", "SEEN", "MESSAGE"]
    assert out.split("\n")[3].split()[:4] == ["web01", "running", "running", "w1"]
    assert await saltern("list", "-o", "name") == (0, "web01\n", "")
    code, out, _ = await saltern("show", "web01")
    assert (code, "file:/srv/images/web.qcow2" in out) == (0, True)
    for verb, status in (("suspend", "paused"), ("resume", "running"), ("shutdown", "halted"), ("start", "running")):
        code, out, err = await saltern(verb, "web01", "-o", "json")
        assert (code, json.loads(out)["status"]) == (0, status), err
    assert (await saltern("wait", "web01", "--for", "running"))[0] == 0
    code, out, _ = await saltern("destroy", "web01", "-o", "json")
    assert (code, json.loads(out)["status"]) == (0, "destroyed")
    code, out, _ = await saltern("workers")
    assert (code, "8192 of 8192 MiB" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("show", "ghost"), 3, "There is no VM 'ghost'"),
        (("create", "-o", "json"), 2, "Missing"),
        (("create", "web01", "--hda-image", "ftp://host/a"), 2, "hda_image: unknown scheme 'ftp'"),
        (("create", "web01", *IMAGE, "--mem-size", "999999"), 1, "the largest worker has 8192 MiB"),
        (("frobnicate",), 2, "No such command"),
        (("--url", "http://127.0.0.1:1", "list"), 1, "Nobody answers at http://127.0.0.1:1"),
        (("--url", "nonsense", "list"), 2, "is not a URL"),
        (("--token-file", "/nowhere/token", "list"), 1, "Cannot read the token from /nowhere/token"),
    ],
)
async def test_errors_are_one_sentence_and_an_exit_code(saltern, words, code, told):
    token = "" if "--token-file" in words else TOKEN
    got, _, err = await saltern(*words, token=token)
    assert (got, told in err) == (code, True), err


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_denied(saltern, token):
    code, _, err = await saltern("list", token=token)
    assert (code, "SALTERN_TOKEN_FILE" in err) == (5, True)


async def test_waiting_for_a_status_that_does_not_exist_is_refused_at_once(saltern):
    code, _, err = await saltern("wait", "web01", "--for", "hlted")
    assert code == 2
    assert "hlted" in err
    assert "halted" in err


async def test_waiting_fails_when_the_vm_does_and_ends_when_the_time_is_over(saltern, served):
    served.salt.by_itself = False
    code, _, err = await saltern("create", "slow", *IMAGE, "--timeout", "0.1")
    assert code == 4
    assert "Not within 0.1 s: slow preparing" in err
    served.salt.workers["w1"].refusals["start"] = Code.POLICY
    code, _, err = await saltern("create", "bad", *IMAGE)
    assert code == 1
    assert "bad is failed: w1 refuses to start it: start is refused" in err
    served.salt.lose_jobs = True
    code, _, err = await saltern("destroy", "slow", "--timeout", "0.1")
    assert (code, "not seen within 0.1 s" in err) == (4, True)


async def test_the_command_line_carries_no_database():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, master_service.cli.app\n"
        "print([name for name in ('sqlalchemy', 'fastapi', 'rich', 'salt') if name in sys.modules])",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"
