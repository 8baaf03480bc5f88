"""The host is shutting down, according to systemd."""

import pytest

from worker_service.core import host


@pytest.mark.parametrize(
    ("word", "is_stopping"),
    [("running", False), ("degraded", False), ("starting", False), ("offline", False), ("stopping", True)],
)
def test_systemds_word_is_taken(tmp_path, monkeypatch, word, is_stopping):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\n[ $1 = is-system-running ] && echo {word}\nexit 1\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(host, "_SYSTEMD", tmp_path)
    assert host.stopping() is is_stopping


def test_host_without_systemd_is_not_shutting_down(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_SYSTEMD", tmp_path / "none")
    monkeypatch.setenv("PATH", "")
    assert host.stopping() is False


def test_systemd_without_an_answer_is_no_shutdown(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_SYSTEMD", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert host.stopping() is False


def test_boot_has_a_name(tmp_path, monkeypatch):
    assert host.boot_id() == host.boot_id() != ""
    monkeypatch.setattr(host, "BOOT_ID", tmp_path / "none")
    assert host.boot_id() == ""
