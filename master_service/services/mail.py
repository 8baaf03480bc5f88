"""Send a notice through the mail server of the settings."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
from datetime import datetime
from email.message import EmailMessage

from master_service.core.errors import NotDelivered
from master_service.core.settings import Settings, SettingsError, read_secret
from master_service.policy.notice_formats import NO_MAIL, Delivery, mail


async def send(delivery: Delivery, settings: Settings, now: datetime) -> None:
    """Send it once. Raises NotDelivered."""
    if not delivery.email:
        raise NotDelivered("The e-mail address has been removed or replaced.", retry=False)
    if not settings.smtp_host:
        raise NotDelivered(NO_MAIL, retry=False)
    sender = settings.smtp_from or f"saltern@{socket.getfqdn()}"
    # In a thread that cannot be cancelled: each of its steps ends within smtp_timeout_s.
    await asyncio.to_thread(_send, mail(delivery, sender, now), settings)


def _send(message: EmailMessage, settings: Settings) -> None:
    where = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        with _connected(settings) as server:
            if settings.smtp_user:
                password = settings.smtp_password_file
                server.login(settings.smtp_user, read_secret(password, "the password for mail") if password else "")
            server.send_message(message)
    except SettingsError as err:
        raise NotDelivered(str(err)) from err
    except smtplib.SMTPAuthenticationError as err:
        raise NotDelivered(f"{where} refuses smtp_user ({err.smtp_code}).") from err
    except smtplib.SMTPRecipientsRefused as err:
        code = max((code for code, _ in err.recipients.values()), default=0)
        raise NotDelivered(f"{where} refuses the address ({code}).", retry=code < 500) from err
    except smtplib.SMTPResponseException as err:
        raise NotDelivered(f"{where} answered {err.smtp_code}.") from err
    except (OSError, smtplib.SMTPException) as err:
        raise NotDelivered(f"{where}: {_describe_failure(err)}.") from err


def _connected(settings: Settings) -> smtplib.SMTP:
    host, port, timeout_s = settings.smtp_host, settings.smtp_port, settings.smtp_timeout_s
    if settings.smtp_tls == "none":
        return smtplib.SMTP(host, port, timeout=timeout_s)
    context = ssl.create_default_context(cafile=str(settings.smtp_ca_file) if settings.smtp_ca_file else None)
    if settings.smtp_tls == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=timeout_s, context=context)
    server = smtplib.SMTP(host, port, timeout=timeout_s)
    try:
        server.starttls(context=context)
    except BaseException:
        server.close()
        raise
    return server


def _describe_failure(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({err.verify_message})"
    return (err.strerror if isinstance(err, OSError) else None) or type(err).__name__
