"""Caches of workers: what their answers mean, and what a user may know of them."""

from datetime import UTC, datetime

import pytest

from master_service.policy.images import Copy, cleaned, copies_of, copy_on, uris_for

URI = "file:///srv/images/debian.qcow2"
IMAGE = {"uris": [URI], "size": 7, "pinned": True, "last_used": 1e9, "used_by": ["web01"]}
ORDER = {"uri": URI, "tries": 0, "problem": None, "given_up": False, "progress": None}


def answer(*images, orders=()):
    return {"success": True, "message": "", "images": list(images), "prefetching": list(orders)}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (None, {"state": "unknown"}),
        ({"success": False, "message": "no", "code": "internal"}, {"state": "unknown"}),
        ("a traceback", {"state": "unknown"}),
        (answer({"uris": 5, "size": 7}), {"state": "unknown"}),
        (answer(), {"state": "absent"}),
        (answer({"uris": ["file:///other"], "size": 7}), {"state": "absent"}),
        (
            answer(IMAGE),
            {
                "state": "cached",
                "size": 7,
                "pinned": True,
                "last_used": datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
                "used_by": ("web01",),
            },
        ),
        (answer({"uris": [URI], "size": 7}), {"state": "cached", "size": 7}),  # a worker of 0.1
        (answer({"uris": [URI], "size": 7, "last_used": 1e300}), {"state": "cached", "size": 7}),
        (answer(orders=[ORDER]), {"state": "waiting"}),
        (answer(orders=[ORDER | {"pin": True}]), {"state": "waiting", "pinned": True}),
        (
            answer(orders=[ORDER | {"progress": {"phase": "prefetch", "done": 3, "total": 9}}]),
            {"state": "fetching", "done": 3, "total": 9},
        ),
        (
            answer(orders=[ORDER | {"tries": 1, "problem": "HTTP 500"}]),
            {"state": "waiting", "tries": 1, "problem": "HTTP 500"},
        ),
        (
            answer(IMAGE, orders=[ORDER | {"tries": 3, "problem": "gone", "given_up": True}]),
            {"state": "failed", "tries": 3, "problem": "gone"},
        ),
    ],
)
def test_image_on_a_worker_has_a_state(reply, expected):
    assert copy_on("w1", reply, URI) == Copy(worker="w1", uri=URI, **expected)


def test_all_images_of_an_answer_are_listed():
    other = {"uris": ["https://host.test/a", "https://host.test/b"], "size": 1}
    found = copies_of("w1", answer(IMAGE, other, orders=[ORDER]))
    assert [(copy.uri, copy.state) for copy in found] == [
        (URI, "waiting"),
        ("https://host.test/a", "cached"),
        ("https://host.test/b", "cached"),
    ]
    assert copies_of("w1", None) == []


@pytest.mark.parametrize(
    ("source", "knows"),
    [
        ({"public": True}, True),
        ({"owners": ["ann"]}, True),
        ({"owners": ["bob", ""]}, False),  # the site has fetched what is not open to all
        ({}, False),
    ],
)
def test_user_knows_public_images_and_their_own(source, knows):
    copies = copies_of("w1", answer(IMAGE | {"sources": [{"uri": URI, **source}]}))
    assert uris_for(copies, "ann") == ({URI: 7} if knows else {})


def test_image_of_an_older_worker_is_not_for_users():
    assert uris_for(copies_of("w1", answer(IMAGE)), "ann") == {}
    assert uris_for(copies_of("w1", answer(orders=[ORDER])), "ann") == {}


def test_secrets_of_an_old_worker_are_masked():
    old = "https://host.test/a?X-Amz-Signature=c4nary"
    for reply in (answer({"uris": [old], "size": 1}), answer(orders=[ORDER | {"uri": old, "problem": f"{old} fails"}])):
        assert "c4nary" not in repr(copies_of("w1", reply))
    assert "c4nary" not in repr(cleaned(answer({"uris": [old], "size": 1})))


def test_removed_images_are_read():
    assert cleaned(answer(IMAGE)) == ({"uris": [URI], "size": 7},)
    assert cleaned("a traceback") == ()
