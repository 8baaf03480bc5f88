"""The image cache as users may know it: which URIs are public."""

import pytest

from tests.lib.support import Site
from worker_service.images.fetch_notes import FetchNote
from worker_service.operations.cache import _ANY_OWNER, _is_public

STORES = """
salt_roots = ["images", "of/{owner}"]
[images.stores."https://lab.test"]
kind = "open"
owners = ["ann"]
[images.stores."https://lab.test/{owner}"]
kind = "open"
"""


@pytest.mark.parametrize(
    ("uri", "owners", "public"),
    [
        ("file://{images}/debian.raw", ("ann",), True),
        ("file://{images}/debian.raw", ("",), True),
        ("file://{saved}/web01.qcow2", ("ann",), False),  # a disk of a VM, whoever may read it
        ("file://{saved}/web01.qcow2", ("", "ann"), True),  # the site shows it on purpose
        ("file:///elsewhere/debian.raw", ("",), False),
        ("salt://images/debian.raw", ("ann",), True),
        ("salt://of/ann/debian.raw", ("ann",), False),
        ("https://127.0.0.1/debian.raw", ("ann",), False),  # an address may be a secret
        ("https://127.0.0.1/debian.raw", ("",), True),
        ("https://lab.test/debian.raw", ("",), False),
        ("https://lab.test/ann/debian.raw", ("",), False),
        ("nonsense", ("",), False),
    ],
)
def test_uri_is_public_where_all_may_fetch_it(tmp_path, uri, owners, public):
    site = Site(tmp_path, images=STORES)
    note = FetchNote(uri.format(images=site.images, saved=site.saved), None, "0" * 64, None, owners)
    assert _is_public(note, site.worker.policy_of(_ANY_OWNER)) is public
