"""What becomes of the disks of a VM, said before it starts."""

import pytest

from worker_service.contract import Spec, describe_ends

DATA = {"hdb_image": "blank:1G"}
SAVED, OTHER = "file:///saved/a", "file:///saved/b"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "Its disk will be kept on its worker when it halts."),
        ({"hda_save_to": ""}, "Its disk will be discarded when it halts."),
        ({"hda_save_to": SAVED}, f"Its disk will be saved to {SAVED} when it halts."),
        ({"hda_save_to": SAVED, "hdb_save_to": OTHER}, f"Its disk will be saved to {SAVED} when it halts."),
        (DATA, "Its disks will be kept on its worker when it halts."),
        ({**DATA, "hda_save_to": "", "hdb_save_to": ""}, "Its disks will be discarded when it halts."),
        ({**DATA, "hda_save_to": ""}, "Its disks will be kept on its worker when it halts."),
        (
            {**DATA, "hda_save_to": SAVED},
            f"When it halts, hda will be saved to {SAVED} and kept on its worker and hdb will be kept on its worker.",
        ),
        (
            {**DATA, "hda_save_to": SAVED, "hdb_save_to": ""},
            f"When it halts, hda will be saved to {SAVED} and hdb will be discarded.",
        ),
        (
            {**DATA, "hda_save_to": SAVED, "hdb_save_to": OTHER},
            f"When it halts, hda will be saved to {SAVED} and hdb will be saved to {OTHER}.",
        ),
        ({"hda_save_to": "https://ann:c4nary@h/a"}, "Its disk will be saved to https://***@h/a when it halts."),
    ],
)
def test_end_of_each_disk_is_said(given, words):
    assert describe_ends(Spec(name="a", hda_image="blank:1G", **given)) == words
