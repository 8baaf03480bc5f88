"""Post a notice to a user's webhook. The connection goes to an address that was checked, because users set the URL."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import httpx2

from master_service.core.errors import NotDelivered
from master_service.core.settings import Settings
from master_service.policy.notice_formats import Delivery, webhook
from worker_service.contract.public_address import allowed_of
from worker_service.contract.retry_after import MAX_PAUSE_S, requested_pause_s

_PORTS: Final = {"http": 80, "https": 443}


async def post(delivery: Delivery, settings: Settings, now: datetime) -> None:
    """Post a notice once. Follows no redirect and reads no body. Raises NotDelivered without the path of the URL."""
    if not delivery.webhook_url:
        raise NotDelivered("The webhook was removed meanwhile.", retry=False)
    url = httpx2.URL(delivery.webhook_url)
    where = f"{url.host}:{url.port or _PORTS[url.scheme]}"
    try:
        async with asyncio.timeout(settings.webhook_timeout_s):
            addresses = await _addresses(url, settings.webhook_networks)
            status, retry_after = await _send(url, addresses, delivery, now, settings.webhook_timeout_s)
    except (TimeoutError, httpx2.TimeoutException) as err:  # both limits are the same
        raise NotDelivered(f"{where} did not answer within {settings.webhook_timeout_s:g} s.") from err
    except httpx2.HTTPError as err:
        # Only the kind of the error: some messages repeat the URL, which may contain a secret.
        raise NotDelivered(f"The connection to {where} failed ({type(err).__name__}).") from err
    if 300 <= status < 400:
        raise NotDelivered(
            f"{where} redirects ({status}), and webhooks follow no redirect. Set the last URL.", retry=False
        )
    if status == httpx2.codes.GONE:
        raise NotDelivered(f"{where} answered {status}: the webhook no longer exists.", retry=False)
    if not 200 <= status < 300:
        wait_s = min(requested_pause_s(retry_after, now), MAX_PAUSE_S)
        asks = f" It asks for a pause: the next try comes after {wait_s:.0f} s." if wait_s else ""
        raise NotDelivered(f"{where} answered {status}.{asks}", wait_s=wait_s)


async def _send(
    url: httpx2.URL, addresses: Sequence[str], delivery: Delivery, now: datetime, timeout_s: float
) -> tuple[int, str]:
    """Post to the first address that can be connected to; return the status and Retry-After. They share the time."""
    body, headers = webhook(delivery, now)
    limits = httpx2.Timeout(timeout_s, connect=timeout_s / len(addresses))
    # trust_env is off because a proxy from the environment would connect to addresses that are refused here.
    async with httpx2.AsyncClient(timeout=limits, trust_env=False, follow_redirects=False) as client:
        for left, address in enumerate(addresses, 1 - len(addresses)):
            request = client.build_request(
                "POST",
                url.copy_with(host=address),
                headers={**headers, "Host": url.netloc.decode()},
                content=body,
                extensions={"sni_hostname": url.host},
            )
            try:
                answer = await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if left == 0:
                    raise
                continue
            await answer.aclose()
            return answer.status_code, answer.headers.get("retry-after", "")
    raise AssertionError("there is no address")


async def _addresses(url: httpx2.URL, networks: Sequence[str]) -> list[str]:
    """Return the addresses of the host that may be connected to. Raises NotDelivered if it has no such."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, url.port or _PORTS[url.scheme], type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as err:
        raise NotDelivered(f"The host {url.host} cannot be resolved.") from err
    if allowed := allowed_of((str(info[4][0]) for info in found), networks):
        return allowed
    raise NotDelivered(
        f"{url.host} leads to an address that is not public. An administrator may add its network to the "
        "setting webhook_networks.",
        retry=False,
    )
