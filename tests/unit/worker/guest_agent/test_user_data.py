"""Users' documents for cloud-init: each keeps its type in the seed, and one that would be ignored is refused."""

import email
import time

import pytest

from worker_service.contract import Spec
from worker_service.core.errors import Refused
from worker_service.guest_agent import seed_iso, user_data

MIME = b"""Content-Type: multipart/mixed; boundary="b"
MIME-Version: 1.0

--b
Content-Type: text/x-shellscript; charset="us-ascii"

#!/bin/sh
echo hi
--b
Content-Type: text/cloud-config
Merge-Type: list(append)

#cloud-config
packages: [git]
--b--
"""

DOCUMENTS = {
    b"#cloud-config\npackages: [git]\n": "text/cloud-config",
    b"#cloud-config\n# nothing yet\n": "text/cloud-config",
    b"\n#Cloud-Config\r\npackages: [git]\r\n": "text/cloud-config",
    b"#cloud-config-archive\n- type: text/cloud-config\n  content: 'a: 1'\n": "text/cloud-config-archive",
    b"## template: jinja\n#cloud-config\nhostname: {{ v1.region }}\n": "text/jinja2",
    b"#!/bin/sh\necho hi\n": "text/x-shellscript",
    b"#cloud-boothook\n#!/bin/sh\n": "text/cloud-boothook",
    b"#include\nhttp://host/a\n": "text/x-include-url",
    b"#include-once\nhttp://host/a\n": "text/x-include-once-url",
    b"#part-handler\ndef list_types(): return []\n": "text/part-handler",
}


def parts(document):
    files = seed_iso.contents(Spec(name="a", hda_image="file:///a", ssh_keys=("ssh-rsa A",)), "L1", document, None)
    message = email.message_from_bytes(files["user-data"])
    return [part for part in message.walk() if part.get_content_maintype() != "multipart"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_keeps_its_type_in_the_seed(document):
    user_data.check(document, "x")
    theirs, ours = parts(document)
    assert (theirs.get_content_type(), theirs.get_payload(decode=True)) == (DOCUMENTS[document], document)
    assert ours.get_content_type() == "text/cloud-config"


def test_mime_message_keeps_its_parts():
    user_data.check(MIME, "x")
    script, config, _ours = parts(MIME)
    assert (script.get_content_type(), script.get_payload()) == ("text/x-shellscript", "#!/bin/sh\necho hi")
    assert (config.get_content_type(), config["Merge-Type"]) == ("text/cloud-config", "list(append)")


def test_mime_message_of_one_part_is_passed_on():
    single = (
        b"MIME-Version: 1.0\nContent-Type: text/x-shellscript\nContent-Transfer-Encoding: base64\n\nIyEvYmluL3NoCg==\n"
    )
    user_data.check(single, "x")
    script, _ours = parts(single)
    assert (script.get_content_type(), script.get_payload(decode=True)) == ("text/x-shellscript", b"#!/bin/sh\n")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "begins with none of"),
        (b"packages: [git]\n", "begins with none of"),
        (b"\x1f\x8b\x08 packed", "begins with none of"),
        (b"<html>404</html>", "begins with none of"),
        (b"mime-version: 1.0\n\nnothing", "no MIME message"),
        (b"#cloud-config\n- a\n- b\n", "no YAML mapping"),
        (b"#cloud-config\njust words\n", "no YAML mapping"),
        (b"#cloud-config\na: [1\n", "is not YAML"),
        (b"#cloud-config\na: b: c\n", "is not YAML: mapping values are not allowed here.*line 2"),
        (b"#cloud-config\na: \xff\xfe\n", "is not YAML"),
        (b"#cloud-config\na: " + b"[" * 100_000, "is not YAML"),
        (b"#cloud-config-archive\na: 1\n", "no YAML sequence"),
    ],
)
def test_document_that_would_be_ignored_is_refused(document, why):
    with pytest.raises(Refused, match=f"^http://host/doc .*{why}"):
        user_data.check(document, "http://host/doc")


def test_document_that_doubles_itself_is_not_expanded():
    """Each level merges nine copies of the one before: 9^9 keys."""
    levels = "\n".join(f"b{n}: &b{n}\n  <<: [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 10))
    began = time.process_time()
    user_data.check(f"#cloud-config\nb0: &b0 {{k: v}}\n{levels}\n".encode(), "x")
    assert time.process_time() - began < 5
