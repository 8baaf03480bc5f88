"""`http:` and `https:` images: the address that was checked is the address connected to, at each hop of a redirect."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx2

from worker_service.contract import Code
from worker_service.errors import Refused, TransferFailed
from worker_service.images.schemes import Head
from worker_service.images.uri import Uri
from worker_service.settings import Images

_HOPS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_FOR_GOOD: Final = frozenset({400, 401, 403, 405, 451})


class Missing(TransferFailed):
    """Nothing lies at that address."""

    retry = False


class Http:
    """Source for `http:` and `https:` URIs; `http_put.Put` makes a target of it."""

    def __init__(self, policy: Images) -> None:
        self._policy = policy
        self._networks = tuple(ipaddress.ip_network(network) for network in policy.http_networks)

    def check(self, uri: Uri) -> None:
        """Refuse URIs without a host. Addresses are checked when the name is resolved."""
        if not httpx2.URL(uri.text).host:
            raise Refused(f"{uri} names no host. Write it like https://host/image.qcow2.", code=Code.POLICY)

    def head(self, uri: Uri) -> Head:
        """Size and ETag. Asked with a GET that is not read: some stores refuse HEAD, or answer it otherwise."""
        with self._get(uri, {}) as answer:
            etag = answer.headers.get("etag")
            length = answer.headers.get("content-length")
            size = int(length) if length and length.isdigit() else None
            modified = answer.headers.get("last-modified")
            strong = etag is not None and not etag.startswith("W/")
            return Head(size, etag or (f"{modified} {size}" if modified else None), resumable=strong)

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """The bytes from an offset on; a resume is asked for under the strong validator only."""
        headers = {"Range": f"bytes={offset}-", "If-Range": head.validator or ""} if offset else {}
        with self._get(uri, headers) as answer:
            if offset and answer.status_code != httpx2.codes.PARTIAL_CONTENT:
                raise TransferFailed(f"{uri} changed while it was fetched. It is fetched anew.")
            if not offset and head.validator and answer.headers.get("etag", head.validator) != head.validator:
                raise TransferFailed(f"{uri} changed between two questions. It is fetched anew.")
            try:
                yield from answer.iter_raw()
            except httpx2.HTTPError as err:
                raise broken(uri, err) from err

    @contextmanager
    def _get(self, uri: Uri, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        url = httpx2.URL(uri.text)
        with self._client() as client:
            for _hop in range(_HOPS + 1):
                request = self._pinned(client, ("GET", url), uri, headers)
                try:
                    answer = client.send(request, stream=True)
                except httpx2.HTTPError as err:
                    raise broken(uri, err) from err
                if answer.status_code not in _REDIRECTS:
                    break
                answer.close()
                url = self._next_hop(uri, url, answer.headers.get("location", ""))
            else:
                raise TransferFailed(f"{uri} redirects more than {_HOPS} times. Name its last address.", retry=False)
            try:
                demand_success(uri, answer)
                yield answer
            finally:
                answer.close()

    def _client(self) -> httpx2.Client:
        # trust_env off: a proxy from the environment would connect on our behalf to what we refuse.
        return httpx2.Client(timeout=self._policy.timeout_s, trust_env=False, follow_redirects=False)

    def _pinned(
        self,
        client: httpx2.Client,
        request: tuple[str, httpx2.URL],
        uri: Uri,
        headers: dict[str, str],
        body: Iterator[bytes] | None = None,
    ) -> httpx2.Request:
        """A request to the very address that was checked; host name and certificate stay the URI's."""
        method, url = request
        address = self._allowed_address(uri, url)
        host = url.netloc.decode()
        return client.build_request(
            method,
            url.copy_with(host=address),
            headers={**headers, "Host": host, "Accept-Encoding": "identity"},
            content=body,
            extensions={"sni_hostname": url.host},
        )

    def _allowed_address(self, uri: Uri, url: httpx2.URL) -> str:
        try:
            found = socket.getaddrinfo(url.host, url.port or url.scheme, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as err:
            raise TransferFailed(f"The host of {uri} cannot be resolved ({err}). Check its name.") from err
        addresses = [ipaddress.ip_address(info[4][0]) for info in found]
        for address in addresses:
            plain = getattr(address, "ipv4_mapped", None) or address
            if not plain.is_global and not any(plain in network for network in self._networks):
                raise Refused(
                    f"{uri} leads to {address}, which is not a public address. "
                    "If it is a store of yours, add its network to images.http_networks in the worker's settings.",
                    code=Code.POLICY,
                )
        return str(addresses[0])

    @staticmethod
    def _next_hop(uri: Uri, url: httpx2.URL, location: str) -> httpx2.URL:
        following = url.join(location)
        if following.scheme not in ("http", "https") or (url.scheme == "https" and following.scheme == "http"):
            raise Refused(
                f"{uri} redirects to {following.scheme}:, which is refused. Name an address that stays.",
                code=Code.POLICY,
            )
        return following


def demand_success(uri: Uri, answer: httpx2.Response) -> None:
    """Raise TransferFailed for an answer that is none of the good ones; it says whether another try may help."""
    if answer.is_success:
        return
    text = f"{uri} answered {answer.status_code} {answer.reason_phrase}."
    if answer.status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.GONE):
        raise Missing(f"{text} Check the URI.")
    if answer.status_code in _FOR_GOOD:
        raise TransferFailed(f"{text} Check the URI and who may read it.", retry=False)
    raise TransferFailed(f"{text} The server may be busy.")


def broken(uri: Uri, err: Exception) -> TransferFailed:
    """The error for a connection that did not work, or no longer."""
    return TransferFailed(f"{uri} broke off: {str(err) or type(err).__name__}. Check the server and the way to it.")
