"""Posts a notice to somebody's webhook. The URL is a user's: the address that is checked is the one connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import httpx2

from master_service.core.errors import NotDelivered
from master_service.core.settings import Settings
from master_service.policy.notice_formats import Delivery, webhook

_PORTS: Final = {"http": 80, "https": 443}
_LEAD_ANYWHERE: Final = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "2001::/32", "2002::/16")))
"""A site's own NAT64, Teredo, 6to4: to which IPv4 address these lead is settled elsewhere."""


async def post(delivery: Delivery, settings: Settings, now: datetime) -> None:
    """Post it once: no redirect is followed, no answer is read. Raises NotDelivered, without the URL's path."""
    if not delivery.webhook_url:
        raise NotDelivered("The webhook was removed meanwhile.", retry=False)
    url = httpx2.URL(delivery.webhook_url)
    where = f"{url.host}:{url.port or _PORTS[url.scheme]}"
    try:
        async with asyncio.timeout(settings.webhook_timeout_s):
            address = await _address(url, settings.webhook_networks)
            status = await _send(url, address, delivery, now, settings.webhook_timeout_s)
    except (TimeoutError, httpx2.TimeoutException) as err:  # both end at the same time
        raise NotDelivered(f"{where} did not answer within {settings.webhook_timeout_s:g} s.") from err
    except httpx2.HTTPError as err:
        # Only the kind: the words of some errors repeat the URL, which may have a secret in it.
        raise NotDelivered(f"The connection to {where} failed ({type(err).__name__}).") from err
    if 300 <= status < 400:
        raise NotDelivered(f"{where} redirects ({status}), which is not followed. Set the last URL.", retry=False)
    if status == httpx2.codes.GONE:
        raise NotDelivered(f"{where} answered {status}: it is gone for good.", retry=False)
    if not 200 <= status < 300:
        raise NotDelivered(f"{where} answered {status}.")


async def _send(url: httpx2.URL, address: str, delivery: Delivery, now: datetime, timeout_s: float) -> int:
    body, headers = webhook(delivery, now)
    # trust_env off: a proxy from the environment would connect on our behalf to what we refuse.
    async with httpx2.AsyncClient(timeout=timeout_s, trust_env=False, follow_redirects=False) as client:
        request = client.build_request(
            "POST",
            url.copy_with(host=address),
            headers={**headers, "Host": url.netloc.decode()},
            content=body,
            extensions={"sni_hostname": url.host},
        )
        answer = await client.send(request, stream=True)
        await answer.aclose()
        return answer.status_code


async def _address(url: httpx2.URL, networks: Sequence[str]) -> str:
    """The first address of the host. Raises NotDelivered where one of them is not to be connected to."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, url.port or _PORTS[url.scheme], type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as err:
        raise NotDelivered(f"The host {url.host} cannot be resolved.") from err
    addresses = [str(info[4][0]) for info in found]
    for address in addresses:
        if not allowed(address, networks):
            raise NotDelivered(
                f"{url.host} leads to an address that is not public. An administrator may add its network to the "
                "setting webhook_networks.",
                retry=False,
            )
    return addresses[0]


def allowed(address: str, networks: Sequence[str]) -> bool:
    """Whether a webhook may be posted to this address: a public one, or one in the site's networks."""
    found = ipaddress.ip_address(address)
    plain = getattr(found, "ipv4_mapped", None) or found
    if any(plain in ipaddress.ip_network(network) for network in networks):
        return True
    # Reserved: also the IPv6 networks in which a gateway reaches any IPv4 address, private ones among them.
    special = plain.is_multicast or plain.is_reserved or plain.is_unspecified or getattr(plain, "is_site_local", False)
    return bool(plain.is_global and not special) and not any(plain in network for network in _LEAD_ANYWHERE)
