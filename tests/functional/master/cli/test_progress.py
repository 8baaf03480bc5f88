"""The progress bars of `--wait`, with a real terminal as stderr."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios

import msgspec

from tests.functional.master.conftest import TOKEN, eventually
from worker_service.contract import Progress, event_tag

COLUMNS = 160

RUNS = "web01 is running on w1. Its disk will be kept on its worker when it halts.\n"


class Terminal:
    """A pseudo terminal; `text` is what was drawn on it, without the codes that draw."""

    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.raw, self.ended = b"", asyncio.Event()
        asyncio.get_running_loop().add_reader(self.ours, self.read)

    def read(self):
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            self.raw += os.read(self.ours, 65536)
            return
        asyncio.get_running_loop().remove_reader(self.ours)
        self.ended.set()

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace"))

    def close(self):
        asyncio.get_running_loop().remove_reader(self.ours)
        os.close(self.ours)


def report(salt, uuid, progress):
    status = msgspec.structs.replace(salt.workers["w1"].status(uuid), progress=progress)
    salt.fire("w1", event_tag("w1", uuid, status.status), msgspec.to_builtins(status))


async def test_create_shows_a_bar_that_moves_and_goes(served, tmp_path):
    served.salt.by_itself = False
    terminal = Terminal()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from master_service.cli import main; main()",
        "create", "web01", "--hda-image", "file:/srv/images/web.qcow2", "--mem-size", "64",
        env={
            "SALTERN_URL": str(served.http.base_url).removesuffix("/api/v1/"), "SALTERN_TOKEN": TOKEN,
            "PATH": "/usr/bin:/bin", "PYTHONPATH": sys.path[0], "TERM": "xterm-256color",
        },
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=terminal.theirs,
    )  # fmt: skip
    os.close(terminal.theirs)
    try:
        await eventually(lambda: bool(served.salt.jobs))
        uuid = (await served.status("preparing"))["uuid"]
        mib = 1 << 20
        report(
            served.salt, uuid, Progress(phase="fetching", done=128 * mib, total=512 * mib, rate=14.2 * mib, eta_s=27.0)
        )
        await eventually(lambda: "128.0 of 512.0 MiB, 14.2 MiB/s, 27 s left" in terminal.text)
        assert "web01 preparing" in terminal.text
        assert "fetching" in terminal.text
        assert "━" in terminal.text  # the bar itself
        report(served.salt, uuid, Progress(phase="fetching", done=384 * mib, total=512 * mib))
        await eventually(lambda: "384.0 of 512.0 MiB" in terminal.text)
        report(served.salt, uuid, Progress(phase="installing", done=3, total=7))
        await eventually(lambda: "3 of 7" in terminal.text)
        served.salt.settle()
        out, _ = await process.communicate()
        assert (process.returncode, out.decode()) == (0, RUNS), terminal.text
        await terminal.ended.wait()
        # The cursor is back, and the bar is gone: up one line, and that line erased.
        assert terminal.raw.endswith(b"\x1b[?25h\r\x1b[1A\x1b[2K")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        terminal.close()
