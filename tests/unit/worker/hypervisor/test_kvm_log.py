"""libvirt's log of a domain, as libvirt 9.0 writes it."""

import pytest

from worker_service.contract import HaltCause
from worker_service.hypervisor.kvm_log import last_end

UUID, OTHER = "6d6c7f0e-0000-4000-8000-000000000001", "6d6c7f0e-0000-4000-8000-000000000002"


def start(uuid=UUID):
    return (
        "2026-11-23 07:03:31.284+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4 (Debian), "
        "qemu version: 7.2.22, kernel: 6.1.0, hostname: w1\n"
        "LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=a,debug-threads=on \\\n"
        f"-uuid {uuid} \\\n-no-shutdown\n"
        "char device redirected to /dev/pts/3 (label charserial0)\n"
    )


def end(reason):
    return (
        "2026-11-23T07:03:37.100000Z qemu-system-x86_64: terminating on signal 15 from pid 7 (<unknown process>)\n"
        f"2026-11-23 07:03:37.284+0000: shutting down, reason={reason}\n"
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (start() + end("shutdown"), HaltCause.GUEST),
        (start() + end("destroyed"), HaltCause.KILLED),
        (start() + end("crashed"), HaltCause.CRASHED),
        (start() + end("daemon"), HaltCause.CRASHED),
        (start() + end("saved"), HaltCause.SAVED),
        (start() + end("migrated"), HaltCause.MIGRATED),
        (start() + end("unheard of"), HaltCause.UNKNOWN),
        (start(), None),
        (start() + end("shutdown") + start(), None),
        (start() + end("crashed") + start() + end("shutdown"), HaltCause.GUEST),
        (start(OTHER) + end("shutdown"), None),
        (start(OTHER) + end("destroyed") + start() + end("shutdown"), HaltCause.GUEST),
        (start() + end("shutdown") + start(OTHER) + end("destroyed"), None),
        (end("shutdown"), None),  # turned over in between
        ("", None),
        ("x" * 200_000 + "\n" + start() + end("shutdown"), HaltCause.GUEST),
        (start() + "x" * 200_000 + end("shutdown"), None),  # the start is too far back to be sure whose end it was
    ],
)
def test_how_the_last_run_ended(tmp_path, text, cause):
    log = tmp_path / "a.log"
    log.write_text(text)
    assert last_end(log, UUID) is cause


def test_missing_log_gives_no_cause(tmp_path):
    assert last_end(tmp_path / "none.log", UUID) is None
