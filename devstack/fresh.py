"""Run the README's two commands on a bare Debian 12: `make test-fresh`.

mmdebstrap makes the Debian, and `git clone` puts this checkout's HEAD there, so packages and builds of this machine are
not used. The Debian runs in namespaces of its own, and all of its processes end with them. It shares the machine's
network, because it installs packages, so `make run` in it needs the usual ports of this machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from devstack import bootstrap, health
from devstack.console import Trouble, progress, say
from devstack.guests import mmdebstrap
from devstack.layout import REPO, Layout, Ports

PACKAGES: Final = ("python3", "git", "ca-certificates")
"""The packages that the README requires. make is not among them."""
CLONE: Final = "/root/saltern"
"""In root's home, which QEMU's user cannot enter: the hardest place for the stack, and a common one."""

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_TRUST: Final = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_REGISTRY_VARIABLES: Final = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT", "UV_DEFAULT_INDEX", "UV_INDEX",
    "UV_HTTP_TIMEOUT", "npm_config_registry", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY",
)  # fmt: skip
_FILES: Final = ("/etc/hosts", "/etc/resolv.conf", "/etc/pip.conf", "/etc/uv/uv.toml")
"""The files by which this machine resolves names and its package clients find their registries."""

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "kvm", "net/tun", "loop-control", "loop[0-9]*")
_NAMESPACES: Final = ("--mount", "--pid", "--ipc", "--uts")
_HOLD: Final = "echo ready; cat; :"
"""Process 1. It reaps orphans, and ends when its standard input is closed, also by a SIGKILL of this process.
The colon keeps the shell from becoming `cat`, which does not reap."""
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Done(NamedTuple):
    """The result of one command."""

    name: str
    seconds: float
    passed: bool


def test_fresh(layout: Layout, arguments: Sequence[str]) -> int:
    """Try `make run` and `make test` on a bare Debian 12 (ARGS='--keep' keeps its folder, the rest goes to pytest)."""
    if os.geteuid() != 0:
        raise Trouble("Only root can make and enter a bare Debian: run this as root.")
    if taken := taken_ports(Ports()):
        raise Trouble(
            f"The bare Debian shares this machine's network, where other programs use ports that `make run` needs "
            f"there: {', '.join(map(str, taken))}. Find them with `ss -ltnp` (this clone's own end by `make stop`), "
            f"stop them, and run this again."
        )
    bootstrap.install_packages(layout)
    log = layout.log("fresh")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    keep, rest = split(arguments)
    try:
        with on_end(signal.default_int_handler), _folder(keep=keep) as folder, namespaces() as init:
            root = folder / "root"
            with showing(log):
                make_root(init, root, log)
                clone(root, log)
                script = ["/bin/sh", "-c", furnish(root, devices(Path("/dev")))]
                bootstrap.run(enter(init, script), what="entering the bare Debian", log=log)
            results = run_commands(commands(rest), lambda argv: enter(init, inside(os.environ, argv)), log)
            if failed := not all(one.passed for one in results):
                _keep_logs(root, layout.var / "log/fresh")
    except KeyboardInterrupt:
        raise Trouble("Interrupted: all processes have ended. `make test-fresh` starts from the beginning.") from None
    say(summary(results))
    return int(failed)


def split(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether to keep the folder, and the arguments for pytest."""
    return "--keep" in arguments, [word for word in arguments if word != "--keep"]


def commands(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the README's commands by name, and `make stop`."""
    argv_text = shlex.join(arguments).replace("$", "$$")  # make reads it first, then a shell
    test = ["make", "test", f"ARGS={argv_text}"] if arguments else ["make", "test"]
    return {"run": ["python3", "-m", "devstack", "run"], "test": test, "stop": ["make", "stop"]}


def run_commands(
    chosen: Mapping[str, Sequence[str]], entered: Callable[[Sequence[str]], Sequence[str]], log: Path
) -> list[Done]:
    """Run the commands in order. Stop after a failed `run`; after any other failure go on with the next command."""
    results: list[Done] = []
    for name, argv in chosen.items():
        progress(f"{name}: {shlex.join(argv)}")
        begun, passed = time.monotonic(), False
        with suppress(Trouble), showing(log):
            bootstrap.run(entered(argv), what=name, log=log)
            passed = True
        results.append(Done(name, time.monotonic() - begun, passed))
        progress(f"{name}: {'passed' if passed else f'FAILED; all of its output is in {log}'}")
        if name == "run" and not passed:
            break
    return results


def summary(results: Sequence[Done]) -> str:
    """Return the duration of each command, in one line."""
    return ", ".join(f"{one.name}: {one.seconds:.0f} s{'' if one.passed else ' (failed)'}" for one in results)


@contextmanager
def showing(log: Path) -> Iterator[None]:
    """Show the end of the log if a step fails."""
    try:
        yield
    except Trouble:
        say("\n".join(tail(log.read_text(errors="replace"))))
        raise


def tail(text: str) -> list[str]:
    """Return the last lines of a log for display after a failure."""
    return [f"  | {line}" for line in text.rstrip().splitlines()[-30:]]


def taken_ports(ports: Ports) -> list[int]:
    """Return the ports that a program on this machine uses."""
    return [port for port in astuple(ports) if not health.tcp(port)(health.PATIENT_S)]


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which package clients in the bare Debian reach and trust their registries.

    Variables that name a file of certificates name the copy in Debian's usual place.
    """
    trust = dict.fromkeys((name for name in _TRUST if name in outer), _CERTIFICATES)
    return trust | {name: outer[name] for name in _REGISTRY_VARIABLES if name in outer}


def inside(outer: Mapping[str, str], argv: Sequence[str]) -> list[str]:
    """Return a command that root runs in the clone, with an environment of its own."""
    own = [f"{name}={value}" for name, value in environment(outer).items()]
    return ["/usr/bin/env", "-C", CLONE, "-i", _PATH, "HOME=/root", *own, *argv]


def enter(init: int, argv: Sequence[str]) -> list[str]:
    """Return a command that runs in a process's namespaces. Their root is the machine's until `furnish` changes it."""
    return ["nsenter", "--target", str(init), *_NAMESPACES, *argv]


def make_root(init: int, root: Path, log: Path) -> None:
    """Make the bare Debian, with this machine's mirrors and certificates. Raises Trouble."""
    progress(f"Debian 12, bare: mmdebstrap into {root} (one to four minutes)")
    sources = root.with_name("sources.list")
    sources.write_text(mmdebstrap.apt_sources(log))
    command = mmdebstrap.command(root, sources, PACKAGES, "--variant=minbase", *mmdebstrap.apt_options(log))
    # In the namespaces, so that their mounts end with them and the folder can be removed.
    bootstrap.run(enter(init, command), what="mmdebstrap", log=log)
    for name in _FILES:
        if Path(name).exists():
            (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / name[1:]).unlink(missing_ok=True)
            shutil.copy(name, root / name[1:])
    shutil.copy(os.environ.get("SSL_CERT_FILE", _CERTIFICATES), root / _CERTIFICATES[1:])


def clone(root: Path, log: Path) -> None:
    """Clone this checkout's HEAD into the Debian. Raises Trouble."""
    command = ["git", "clone", "--no-hardlinks", str(REPO), f"{root}{CLONE}"]
    bootstrap.run(command, what="git clone", log=log)
    head, changed = _git("log", "-1", "--format=%h %s"), len(_git("status", "--porcelain").splitlines())
    progress(f"git clone: {head}{f' (without {changed} files that are not committed here)' if changed else ''}")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=REPO, check=False, capture_output=True, text=True).stdout.strip()


def devices(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return the machine's devices that the bare Debian gets too."""
    found = sorted({path for pattern in _DEVICES for path in folder.glob(pattern)})
    return [(str(path.relative_to(folder)), path.stat()) for path in found]


def node(name: str, status: os.stat_result) -> str:
    """Return the shell command that makes a device in dev/."""
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    number = f"{os.major(status.st_rdev)} {os.minor(status.st_rdev)}"
    return f"mknod -m {stat.S_IMODE(status.st_mode):o} dev/{name} {kind} {number}"


def furnish(root: Path, found: Sequence[tuple[str, os.stat_result]]) -> str:
    """Return the shell program that mounts the kernel's file systems in a folder and makes it the namespace's root.

    /dev is a file system of its own and never the machine's, because a libvirt would put its own ptmx there. /sys has
    no cgroups of the machine, in which VMs of equal names would collide.
    """
    nodes = "\n".join(node(name, status) for name, status in found)
    return f"""set -eu
mount --bind {shlex.quote(str(root))} {shlex.quote(str(root))}
cd {shlex.quote(str(root))}
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 dev dev
mkdir dev/net dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
{nodes}
pivot_root . mnt
umount --lazy /mnt
"""


@contextmanager
def namespaces() -> Iterator[int]:
    """Make namespaces with a single process and yield its pid. At the end, all processes in them are killed."""
    words = ["unshare", *_NAMESPACES, "--propagation", "private", "--mount-proc", "--fork", "--kill-child"]
    # A session of its own: an interrupt goes to this process only, which ends the holder itself.
    holder = subprocess.Popen(
        [*words, "/bin/sh", "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert holder.stdin and holder.stdout  # noqa: S101, PT018
    try:
        if holder.stdout.readline() != b"ready\n":
            raise Trouble("Root cannot make namespaces here (in a container?), which the bare Debian needs.")
        yield int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
    finally:
        with on_end(signal.SIG_IGN):
            holder.stdin.close()
            # The kernel ends a PID namespace before its process 1, which ends before `unshare`.
            with suppress(subprocess.TimeoutExpired):
                holder.wait(timeout=30)
            holder.kill()
            holder.wait()
            holder.stdout.close()


@contextmanager
def on_end(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Use a handler for SIGINT, SIGTERM and SIGHUP inside the block."""
    before = {number: signal.signal(number, handler) for number in _ENDS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="saltern-fresh-", dir="/var/tmp"))
    folder.chmod(0o755)  # apt's own user passes through it
    try:
        yield folder
    finally:
        if keep:
            progress(f"kept: {folder}/root (look around with chroot; rm -r {folder} when done)")
        else:
            progress(f"removing {folder}")
            with on_end(signal.SIG_IGN):  # a second Ctrl+C
                shutil.rmtree(folder)


def _keep_logs(root: Path, target: Path) -> None:
    """Copy the logs of the stack and of libvirt from the Debian to this clone's logs."""
    shutil.rmtree(target, ignore_errors=True)
    for source, name in ((f"{root}{CLONE}/var/log", "stack"), (f"{root}/var/log/libvirt", "libvirt")):
        if Path(source).is_dir():
            shutil.copytree(source, target / name)
    progress(f"its logs: {target}")
