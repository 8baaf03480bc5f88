"""The table of event tags in README.md agrees with the code."""

import re

from devstack.layout import REPO
from worker_service.contract import Status, alive_tag, audit_tag, destroyed_tag, event_tag

README = (REPO / "README.md").read_text()
SECTION = re.search(r"^## Events\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]
TAGS = re.findall(r"^\| `([^`]+)` \|", SECTION, re.MULTILINE)


def tag_of(status):
    return event_tag("m", "u", status).rpartition("/")[2]


def test_every_tag_is_in_the_table_and_no_other():
    made = {event_tag("<minion>", "<uuid>", "<status>"), destroyed_tag("<minion>", "<uuid>"), alive_tag("<minion>")}
    assert set(TAGS) == made | {audit_tag("<minion>")}


def test_every_status_is_named_as_it_is_in_a_tag():
    named = re.search(r"^Statuses: (.*)\.$", SECTION, re.MULTILINE)[1]
    assert re.findall(r"`([^`]+)`", named) == [tag_of(status) for status in Status]


def test_watcher_fires_nothing_else():
    text = (REPO / "worker_service/watcher/loop.py").read_text()
    assert set(re.findall(r"_fire\(\s*(\w+)\(", text)) == {"event_tag", "destroyed_tag", "alive_tag", "audit_tag"}
    assert len(re.findall(r"_fire\(", text)) == 4
