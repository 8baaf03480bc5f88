"""`http:` and `https:` images. Each hop of a redirect connects to the address that was checked."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

import httpx2

from worker_service.contract import Code
from worker_service.contract.public_address import CONNECT_S
from worker_service.contract.retry_after import MAX_PAUSE_S, requested_pause_s
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.logs import hide_urls
from worker_service.core.settings import BasicStore, BearerStore, ImagePolicy, QueryStore
from worker_service.transfer import access, credentials
from worker_service.transfer.address_policy import Connector, refuse_literal
from worker_service.transfer.registry import CannotResume, Head, Part, Visit
from worker_service.transfer.stall_guard import Watch, watching
from worker_service.transfer.uri import Uri

hide_urls()  # here too: a minion has a log of its own

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PERMANENT: Final = frozenset({400, 401, 403, 405, 451})
_NOT_CONNECTED: Final = (httpx2.ConnectError, httpx2.ConnectTimeout)
"""Errors before anything was sent."""
_PROXIED: Final = "saltern.proxied"


class Missing(TransferFailed):
    """There is no file at this URI."""

    retry = False


class Changed(TransferFailed):
    """The file at a target is not the one that a request was conditional on."""


class _Ways(httpx2.BaseTransport):
    """Sends each request directly, or through the site's proxy if its extension says so."""

    def __init__(self, direct: httpx2.BaseTransport, proxied: httpx2.BaseTransport) -> None:
        self._direct = direct
        self._proxied = proxied

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        way = self._proxied if request.extensions.get(_PROXIED) else self._direct
        return way.handle_request(request)

    def close(self) -> None:
        self._direct.close()
        self._proxied.close()


class Http:
    """Source for `http:` and `https:` URIs. `http_put.Put` extends it to a target."""

    _hops = 3

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._connector = Connector(policy)

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """The certificates that this host trusts. Reading them takes 25 ms, longer than most requests."""
        return httpx2.create_ssl_context(trust_env=False)

    def check(self, uri: Uri) -> None:
        """Refuse URIs without a host, or with a user or a private address. Names are checked when they are resolved."""
        host = self._url(uri).host
        if not host:
            raise Refused(f"{uri} names no host. Write it like https://host/image.qcow2.", code=Code.POLICY)
        credentials.refuse_secrets(uri)
        self._require_reach(self._url(uri), uri)
        refuse_literal(self._policy, uri, host)

    def head(self, uri: Uri) -> Head:
        """Return size and ETag. Sends a GET without reading its body: some stores refuse HEAD or answer it wrongly."""
        with self._get(uri, {}) as (answer, _body):
            return _head(answer)

    @contextmanager
    def visit(self, uri: Uri, part: Part | None) -> Iterator[Visit]:
        """Yield head and body of one answer: a name may lead to another mirror each time.

        The rest behind a part is requested under its strong validator. Raises CannotResume for an answer that is
        neither that rest nor the whole.
        """
        conditions = self._conditions(part.size, Head(None, part.validator, resumable=True)) if part else {}
        with self._get(uri, conditions) as (answer, body):
            head, begins = _head(answer), 0
            if part and answer.status_code == httpx2.codes.PARTIAL_CONTENT:
                if not _resumes(answer, part.size) or head.validator not in (None, part.validator):
                    raise _cannot_resume(uri)
                total = answer.headers.get("content-range", "").rpartition("/")[2]
                rest = part.size + head.size if head.size is not None else None
                head = Head(int(total) if total.isdigit() else rest, part.validator, resumable=True)
                begins = part.size
            yield Visit(head, begins, body)

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """Yield the bytes from an offset on. It resumes only under the strong validator."""
        with self._get(uri, self._conditions(offset, head)) as (answer, body):
            if offset and not _resumes(answer, offset):
                raise _cannot_resume(uri)
            if not offset and head.validator and answer.headers.get("etag", head.validator) != head.validator:
                raise TransferFailed(f"{uri} changed between two requests. The worker fetches it again.")
            yield from body

    def _url(self, uri: Uri) -> httpx2.URL:
        try:
            return httpx2.URL(uri.text)
        except httpx2.InvalidURL:  # its message repeats a part, which may be one of a password
            raise BadRequest(f"{uri} is no URL. Write it like https://host/image.qcow2.") from None

    def _require_reach(self, url: httpx2.URL, uri: Uri) -> None:
        """Refuse a URL, the first one or one of a redirect, that lies in a folder closed to the owner."""
        if (found := self._store(url)) and found.store is None:
            raise credentials.closed(self._policy, str(uri))

    def _store(self, url: httpx2.URL) -> access.StoreMatch | None:
        return access.store_at(self._policy, url.scheme, url.netloc.decode(), url.path)

    def _conditions(self, offset: int, head: Head) -> dict[str, str]:
        return {"Range": f"bytes={offset}-", "If-Range": head.validator or ""} if offset else {}

    def _credentials(self, request: tuple[str, httpx2.URL], uri: Uri, headers: dict[str, str]) -> dict[str, str]:  # noqa: ARG002
        """Return the credentials for the folder of this hop. No other host or folder ever gets them."""
        _method, url = request
        found = self._store(url)
        store = found.store if found else None
        if isinstance(store, BearerStore):
            return {"Authorization": f"Bearer {credentials.secret(store.token_file)}"}
        if isinstance(store, BasicStore):
            pair = f"{store.user}:{credentials.secret(store.password_file)}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        return {}

    def _signed(self, url: httpx2.URL) -> httpx2.URL:
        """Return the URL of this hop with the query of its folder. No other host or folder ever gets it."""
        found = self._store(url)
        if found is None or not isinstance(found.store, QueryStore):
            return url
        query = credentials.secret(found.store.query_file).removeprefix("?").encode()
        return url.copy_with(query=b"&".join(filter(None, (url.query, query))))

    def _require_success(self, uri: Uri, answer: httpx2.Response) -> None:
        require_success(uri, answer)

    @contextmanager
    def _get(self, uri: Uri, headers: dict[str, str]) -> Iterator[tuple[httpx2.Response, Iterator[bytes]]]:
        """Yield an answer, and the bytes of its body."""
        url = self._url(uri)
        with self._client(uri) as (client, watch):
            for _hop in range(self._hops + 1):
                answer = self._ask(client, ("GET", url), uri, headers, None)
                if answer.status_code not in _REDIRECTS or not self._hops:
                    break
                answer.close()
                url = self._next_hop(uri, url, answer.headers.get("location", ""))
            else:
                raise TransferFailed(
                    f"{uri} redirects more than {self._hops} times. Name its last address.", retry=False
                )
            try:
                self._require_success(uri, answer)
                yield answer, _body(uri, answer, watch)
            finally:
                answer.close()

    @contextmanager
    def _client(self, uri: Uri) -> Iterator[tuple[httpx2.Client, Watch]]:
        """Yield a client whose connections are watched. Its errors become a TransferFailed that names the URI."""
        policy = self._policy
        limits = httpx2.Timeout(policy.timeout_s, connect=min(CONNECT_S, policy.timeout_s))
        # trust_env is off because a proxy from the environment would connect to addresses that are refused here.
        client = httpx2.Client(timeout=limits, trust_env=False, follow_redirects=False, transport=self._ways())
        with watching(policy) as watch, client:
            client.event_hooks = {"request": [lambda request: request.extensions.update(trace=watch.trace)]}
            try:
                yield client, watch
            except httpx2.HTTPError as err:
                raise watch.verdict(uri) or _broken(uri, err) from err

    def _ask(
        self,
        client: httpx2.Client,
        request: tuple[str, httpx2.URL],
        uri: Uri,
        headers: dict[str, str],
        body: Iterator[bytes] | None,
    ) -> httpx2.Response:
        """Send a request, without reading the body of its answer. The allowed addresses of the host are tried in turn.

        The connection goes to the address that was checked, with the host name and certificate of the URI.
        """
        method, url = request
        self._require_reach(url, uri)
        headers = {**headers, "Host": url.netloc.decode(), "Accept-Encoding": "identity"}
        headers = {**headers, **self._credentials(request, uri, headers)}
        url = self._signed(url)

        def send(address: str) -> httpx2.Response:
            pinned = url.copy_with(host=address)
            made = client.build_request(
                method, pinned, headers=headers, content=body, extensions={"sni_hostname": url.host}
            )
            return client.send(made, stream=True)

        if self._is_proxied(url.host):
            refuse_literal(self._policy, uri, url.host)
            made = client.build_request(method, url, headers=headers, content=body, extensions={_PROXIED: True})
            return self._through_proxy(client, made, uri)
        return self._connector.connect(uri, url.host, url.port or url.scheme, send, _NOT_CONNECTED)

    def _is_proxied(self, host: str) -> bool:
        proxy, name = self._policy.proxy, host.lower().rstrip(".")
        return proxy is not None and not any(fnmatchcase(name, glob.lower()) for glob in proxy.direct)

    def _ways(self) -> httpx2.BaseTransport:
        """Return the transport of a client: the direct one, and that of the site's proxy."""
        direct = httpx2.HTTPTransport(verify=self._trusted, trust_env=False)
        proxy = self._policy.proxy
        if proxy is None:
            return direct
        login = (proxy.user, credentials.secret(proxy.password_file) if proxy.password_file else "")
        over_tls = proxy.url.startswith("https:")
        way = httpx2.Proxy(
            proxy.url, auth=login if proxy.user else None, ssl_context=self._trusted if over_tls else None
        )
        return _Ways(direct, httpx2.HTTPTransport(verify=self._trusted, trust_env=False, proxy=way))

    def _through_proxy(self, client: httpx2.Client, request: httpx2.Request, uri: Uri) -> httpx2.Response:
        """Send a request through the proxy. Its errors become a TransferFailed that names it."""
        try:
            answer = client.send(request, stream=True)
        except (httpx2.ProxyError, *_NOT_CONNECTED) as err:
            raise self._proxy_failed(uri, str(err) or type(err).__name__) from err
        if answer.status_code == httpx2.codes.PROXY_AUTHENTICATION_REQUIRED:
            answer.close()
            raise self._proxy_failed(uri, f"{answer.status_code} {answer.reason_phrase}")
        return answer

    def _proxy_failed(self, uri: Uri, reason: str) -> TransferFailed:
        url = self._policy.proxy.url if self._policy.proxy else ""
        login = reason.startswith(str(httpx2.codes.PROXY_AUTHENTICATION_REQUIRED.value))
        advice = "Set user and password_file of" if login else "Check the proxy, or correct"
        return TransferFailed(
            f"{uri} cannot be reached through the proxy {url}: {reason}. "
            f"{advice} images.proxy in the worker's settings.",
            retry=not login,
        )

    def _send(self, method: str, uri: Uri, headers: dict[str, str], body: Iterator[bytes] | None) -> httpx2.Response:
        with self._client(uri) as (client, _watch):
            answer = self._ask(client, (method, self._url(uri)), uri, headers, body)
            answer.read()
            return answer

    @staticmethod
    def _next_hop(uri: Uri, url: httpx2.URL, location: str) -> httpx2.URL:
        try:
            following = url.join(location)
        except httpx2.InvalidURL:
            raise Refused(f"{uri} redirects to an invalid URL. Name its last address.") from None
        if following.scheme not in ("http", "https") or (url.scheme == "https" and following.scheme == "http"):
            raise Refused(
                f"{uri} redirects to {following.scheme}:, which is refused. Name an address that stays.",
                code=Code.POLICY,
            )
        return following


def require_success(uri: Uri, answer: httpx2.Response, reason: str = "") -> None:
    """Raise TransferFailed unless an answer is a success. The error says whether another try may help."""
    if answer.is_success:
        return
    text = f"{uri} answered {answer.status_code} {reason or answer.reason_phrase}."
    if answer.status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.GONE):
        raise Missing(f"{text} Check the URI.")
    if answer.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:  # the part is as long as the file
        raise CannotResume(f"{text} The worker fetches it from the beginning.")
    if answer.status_code in _PERMANENT:
        raise TransferFailed(f"{text} Check the URI and its permissions.", retry=False)
    wait_s = requested_pause_s(answer.headers.get("retry-after", ""), datetime.now(UTC))
    reason = f"The server asks for a pause of {wait_s:.0f} s." if wait_s else "The server may be busy."
    raise TransferFailed(f"{text} {reason}", wait_s=min(wait_s, MAX_PAUSE_S))


def _body(uri: Uri, answer: httpx2.Response, watch: Watch) -> Iterator[bytes]:
    """Yield the bytes of an answer. Raises TransferFailed if the watch cut off a body that ends with its connection."""
    yield from answer.iter_raw()
    if not {"content-length", "transfer-encoding"} & answer.headers.keys():
        watch.check_whole(uri)


def _head(answer: httpx2.Response) -> Head:
    """Return what an answer says about its body."""
    etag = answer.headers.get("etag")
    length = answer.headers.get("content-length")
    size = int(length) if length and length.isdigit() else None
    modified = answer.headers.get("last-modified")
    strong = etag is not None and not etag.startswith("W/")
    return Head(size, etag or (f"{modified} {size}" if modified else None), resumable=strong)


def _cannot_resume(uri: Uri) -> CannotResume:
    return CannotResume(f"{uri} cannot resume. The worker fetches it from the beginning.")


def _resumes(answer: httpx2.Response, offset: int) -> bool:
    """Return whether an answer begins at an offset. A server may ignore a Range, and must after a failed If-Range."""
    begins = answer.headers.get("content-range", f"bytes {offset}-").startswith(f"bytes {offset}-")
    return answer.status_code == httpx2.codes.PARTIAL_CONTENT and begins


def _broken(uri: Uri, err: Exception) -> TransferFailed:
    """Return the error for a connection that broke or was never made."""
    return TransferFailed(f"{uri} broke off: {str(err) or type(err).__name__}. Check the server and the network.")
