"""Output of the development stack: answers of the services are made printable."""

from devstack import console

ATTACK = "\x1b]0;owned\x07\u202e"
SHOWN = r"\x1b]0;owned\x07\u202e"


def test_all_output_is_printable(capsys):
    console.progress(f"demo: {ATTACK}")
    console.say(f"two\nlines {ATTACK}")
    console.fail(console.Trouble(ATTACK))
    out, err = capsys.readouterr()
    assert out.split("\n", 1)[0].endswith(f"demo: {SHOWN}")
    assert out.endswith(f"two\nlines {SHOWN}\n")
    assert err == f"saltern: {SHOWN}\n"
