"""Formats of notices: body and signature of a webhook, text of a mail, and the pauses between tries. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import httpx2

from master_service.core.audience import public_text
from master_service.core.settings import Settings
from master_service.policy.incidents import Notice
from worker_service.contract.printable import printable, printable_lines

MAX_URL: Final = 2048
MAX_EMAIL: Final = 254
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
NO_MAIL: Final = "This master sends no mail: an administrator sets smtp_host. A webhook works without it."
_MAX_TEXT: Final = 2000
"""Characters of a notice's text that are sent."""


class Channel(StrEnum):
    """The ways to reach a user."""

    WEBHOOK = "webhook"
    MAIL = "mail"


class State(StrEnum):
    """The state of a delivery."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One notice for one user, with the user's current addresses. `attempts` counts earlier tries."""

    id: int
    user: str
    channel: Channel
    attempts: int
    notice: Notice
    email: str
    webhook_url: str
    webhook_secret: str
    code: str = ""
    """Verifies the address, in a mail that does nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryProgress:
    """The state of one delivery. `problem` is about the last try and has no secrets."""

    notice_id: int
    user: str
    channel: Channel
    state: State
    attempts: int
    next_try_at: datetime | None
    delivered_at: datetime | None
    problem: str


def pause(tries: int, settings: Settings) -> timedelta:
    """Return the pause after the n-th try."""
    return timedelta(seconds=min(settings.notice_retry_cap_s, settings.notice_retry_base_s * tries**2))


def state(next_try_at: datetime | None, delivered_at: datetime | None) -> State:
    """Return the state of a delivery."""
    if delivered_at is not None:
        return State.DELIVERED
    return State.FAILED if next_try_at is None else State.WAITING


def email_address(value: str) -> str:
    """Return an address for mail; empty means none. Raises ValueError."""
    if value and (len(value) > MAX_EMAIL or not _EMAIL.fullmatch(value)):
        raise ValueError("give one address like name@example.org, or nothing to get no mail")
    return value


def webhook_url(value: str) -> str:
    """Return a URL for notices; empty means none. Its address is checked at each use. Raises ValueError."""
    if not value:
        return value
    wrong = "give a URL like https://host/path without user, password or fragment, or nothing for no webhook"
    try:
        parts = urlsplit(value)
        port = parts.port
        httpx2.URL(value)
    except (ValueError, httpx2.InvalidURL) as err:
        raise ValueError(wrong) from err
    plain = value.isascii() and value.isprintable() and " " not in value
    if not plain or len(value) > MAX_URL or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(wrong)
    if port == 0 or parts.username is not None or parts.fragment:
        raise ValueError(wrong)
    return value


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return the header `Saltern-Signature`: HMAC-SHA256 of the time in seconds, a dot, and the body."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def webhook(delivery: Delivery, now: datetime) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of the POST."""
    notice = delivery.notice
    content = {
        "delivery": delivery.id,
        "user": delivery.user,
        "notice": {
            "id": notice.id,
            "at": notice.at.isoformat(),
            "kind": notice.kind,
            "owner": notice.owner,
            "uuid": notice.uuid,
            "name": notice.name,
            "text": public_text(notice.text)[:_MAX_TEXT],
        },
    }
    body = json.dumps(content, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "saltern-master",
        "Saltern-Delivery": str(delivery.id),
        "Saltern-Signature": signature(delivery.webhook_secret, int(now.timestamp()), body),
    }
    return body, headers


def mail(delivery: Delivery, sender: str, now: datetime) -> EmailMessage:
    """Return the mail: a notice, or the code that verifies the address. A repeated one has the same Message-ID."""
    notice = delivery.notice
    message = EmailMessage()
    message["From"] = sender
    message["To"] = delivery.email
    subject = "confirm this address" if delivery.code else f"{notice.name}: {notice.kind.replace('_', ' ')}"
    message["Subject"] = printable(f"Saltern: {subject}")
    message["Date"] = format_datetime(now)
    message["Message-ID"] = f"<{delivery.id}.{notice.id}.{int(notice.at.timestamp())}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    if delivery.code:
        message.set_content(
            f"Somebody with the account {delivery.user} asked a Saltern master to mail notices to this address.\n\n"
            f"If it was you, confirm it:\n\n    saltern users contact --code {delivery.code}\n\n"
            "If it was not you, ignore this mail, and no other will come.\n"
        )
        return message
    about = printable(f"VM {notice.name} ({notice.uuid})" if notice.uuid else notice.name)
    text = printable_lines(public_text(notice.text)[:_MAX_TEXT])
    message.set_content(
        f"{text}\n\nAbout: {about}\nAt: {notice.at:%Y-%m-%d %H:%M:%S} UTC\nNotice: {notice.id}\n\n"
        "`saltern notices` lists all your notices.\n"
    )
    return message
