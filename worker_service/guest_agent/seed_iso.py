"""The seed image: its files, and its bytes as ISO 9660. The format is NoCloud, of cloud-init."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from email.mime.multipart import MIMEMultipart
from pathlib import Path
from typing import Any, Final

import msgspec
import pycdlib
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from worker_service.contract import Spec
from worker_service.guest_agent import user_data

AGENT: Final = Path(__file__).with_name("saltern-agent.sh")
LABEL: Final = "cidata"
GUEST_AGENT_PATH: Final = "/var/lib/cloud/scripts/per-boot/saltern-agent"
"""cloud-init runs this file at each boot, so a guest continues after a reboot. The agent removes it in the end."""

GUEST_STATE: Final = "/var/lib/saltern-agent"
_KEY_BITS: Final = 3072
_MINION_KEYS: Final = "/etc/salt/pki/minion"
_MINION_CONFIG: Final = "/etc/salt/minion.d/saltern.conf"
"""The default places of a minion's keys and configuration."""


class Keys(msgspec.Struct, frozen=True):
    """The key pair of a Salt minion, PEM."""

    private: str
    public: str


def new_key() -> bytes:
    """Return a new private key for a Salt minion."""
    return rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def minion_keys(private: bytes) -> Keys:
    """Return the key pair of a private key."""
    public = serialization.load_pem_private_key(private, None).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Keys(private.decode("ascii"), pem.decode("ascii"))


def contents(spec: Spec, instance_id: str, document: bytes, keys: Keys | None) -> dict[str, bytes]:
    """Return the files of a seed, by path.

    `meta-data` and `user-data` are for cloud-init. `saltern/` has the same for an agent that is part of the image.
    """
    soft_list = "".join(f"{name}\n" for name in spec.soft_list).encode()
    files = {
        "meta-data": _json(_meta_data(spec, instance_id)),
        "user-data": _multipart(document, _cloud_config(spec, soft_list, keys)),
    }
    if spec.wants_agent:
        files |= {"saltern/agent.sh": AGENT.read_bytes(), "saltern/soft_list": soft_list}
    return files


def _meta_data(spec: Spec, instance_id: str) -> Mapping[str, Any]:
    return {
        "instance-id": f"saltern-{instance_id}",
        "local-hostname": spec.hostname or spec.name.replace("_", "-"),
        "public-keys": list(spec.ssh_keys),
    }


def _cloud_config(spec: Spec, soft_list: bytes, keys: Keys | None) -> Mapping[str, Any]:
    files: list[Mapping[str, str]] = []
    config: dict[str, Any] = {}
    if spec.wants_agent:
        files += [
            _file(GUEST_AGENT_PATH, AGENT.read_bytes(), "0755"),
            _file(f"{GUEST_STATE}/soft_list", soft_list, "0644"),
        ]
    if keys is not None:
        minion = {"master": spec.minion_master, "id": spec.hostname or spec.name}
        files += [
            _file(f"{_MINION_KEYS}/minion.pem", keys.private.encode(), "0400"),
            _file(f"{_MINION_KEYS}/minion.pub", keys.public.encode(), "0644"),
            _file(_MINION_CONFIG, _json(minion), "0644"),
        ]
        # cloud-init's module installs the package and restarts the minion. The files above are needed too: the module
        # runs too late for a minion that the image starts, it writes no files if no package has that name, and the keys
        # that it writes are readable by all users.
        config["salt_minion"] = {"conf": minion}
    return {**config, "write_files": files} if files else config


def _file(path: str, content: bytes, permissions: str) -> Mapping[str, str]:
    encoded = base64.b64encode(content).decode("ascii")
    return {"path": path, "permissions": permissions, "encoding": "b64", "content": encoded}


def _multipart(document: bytes, config: Mapping[str, Any]) -> bytes:
    """Put the user's document first and merge ours into it: our list items are appended, the user's values win."""
    message = MIMEMultipart()
    if document:
        message.attach(user_data.part(document))
    part = user_data.text_part(b"#cloud-config\n" + _json(config), "cloud-config")
    part["Merge-Type"] = "list(append)+dict(no_replace,recurse_list)+str()"
    message.attach(part)
    return message.as_bytes()


def _json(value: Mapping[str, Any]) -> bytes:
    """Return JSON, which is valid YAML."""
    return json.dumps(value, indent=1).encode()


def iso(files: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 image with long names (Rock Ridge, Joliet). Folders may be one level deep."""
    disc = pycdlib.PyCdlib()
    disc.new(vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for folder in sorted({path.partition("/")[0] for path in files if "/" in path}):
        disc.add_directory(f"/{_short(folder)}", rr_name=folder, joliet_path=f"/{folder}")
    for number, (path, content) in enumerate(sorted(files.items())):
        folder, _, name = path.rpartition("/")
        where = f"/{_short(folder)}/F{number}.;1" if folder else f"/F{number}.;1"
        disc.add_fp(io.BytesIO(content), len(content), where, rr_name=name, joliet_path=f"/{path}")
    image = io.BytesIO()
    disc.write_fp(image)
    disc.close()
    return image.getvalue()


def _short(name: str) -> str:
    return name.upper()[:8]
