"""The entries of the lists of a guest: how a text is split, and which public keys are accepted."""

import pytest

from worker_service.contract import GUEST_PARAMETERS, guest_entries, is_guest_entry

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzP"
OTHER = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2g"


@pytest.mark.parametrize(
    ("parameter", "given", "entries"),
    [
        ("soft_list", "nginx", ["nginx"]),
        ("soft_list", "nginx,git", ["nginx", "git"]),
        ("soft_list", " nginx , git,", ["nginx", "git"]),
        ("soft_list", "", []),
        ("soft_list", ["nginx", "git"], ["nginx", "git"]),
        ("soft_list", ["a,b"], ["a,b"]),
        ("ssh_keys", KEY, [KEY]),
        ("ssh_keys", f"{KEY} me@host,{OTHER} me", [f"{KEY} me@host", f"{OTHER} me"]),
        ("ssh_keys", f"{KEY}\n\n  {OTHER} me at home\r\n", [KEY, f"{OTHER} me at home"]),
        ("ssh_keys", f"{KEY} Ann, Bob, ssh-agent", [f"{KEY} Ann, Bob, ssh-agent"]),
        ("ssh_keys", f"{KEY} Ann, Bob , {OTHER}", [f"{KEY} Ann, Bob", OTHER]),
        ("ssh_keys", f"ssh-ed25519 \t{KEY.split()[1]}   two  blanks \n", [f"{KEY} two  blanks"]),
        ("ssh_keys", [f"{KEY} me\n", f" {OTHER}  it"], [f"{KEY} me", f"{OTHER} it"]),
        ("ssh_keys", [""], [""]),
    ],
)
def test_list_comes_as_text_or_as_entries(parameter, given, entries):
    assert guest_entries(parameter, given) == entries
    assert guest_entries(parameter, entries) == entries


@pytest.mark.parametrize(
    "comment",
    ["me@host", "me at home", "Ann's laptop: work [2024] (old), <a@b.c>", "Jürgen Müller", "two  blanks", "#1",
     "x" * 200, "'; rm -rf / $(id) `id`", "日本"],
)  # fmt: skip
def test_key_with_any_printable_comment_is_accepted(comment):
    assert is_guest_entry("ssh_keys", f"{KEY} {comment}")


@pytest.mark.parametrize(
    "entry",
    ["nonsense", f'command="id" {KEY}', f"{KEY} a\nb", f"{KEY}\n{OTHER}", f"{KEY} a\tb", f"{KEY} \x1b[2J",
     f"{KEY} \x00", f"{KEY} \u202ea", f"{KEY} {'x' * 201}", f"{KEY} a\u2028b", "-----BEGIN OPENSSH PRIVATE KEY-----",
     "ssh-rsa short x"],
)  # fmt: skip
def test_other_keys_are_refused(entry):
    assert not is_guest_entry("ssh_keys", entry)


@pytest.mark.parametrize("parameter", GUEST_PARAMETERS)
def test_no_entry_hides_anything(parameter):
    good = {"soft_list": "nginx", "hostname": "web", "ssh_keys": KEY, "minion_master": "salt"}[parameter]
    assert is_guest_entry(parameter, good)
    assert not any(is_guest_entry(parameter, f"{good}{end}") for end in ("\n", "\x00", "\u200b", "\x7f"))
