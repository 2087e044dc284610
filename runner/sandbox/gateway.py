"""The model's API as a jail sees it: plain HTTP on its loopback, with TLS and the real credential from here on.

Requests go to one fixed server. Where upstream.headers are given, they replace the child's, and whatever else the child
may log in with is dropped: then what it holds is a placeholder. Without any, its own login passes (a subscription's).
Bodies pass in both directions as they come, still compressed; statuses and headers are the server's own.

HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE of the runner's environment hold for https; servers without TLS are in the
house, and reached directly. There is no time-out for an answer: a model may think for minutes, and the tools have their
own. httpx's transport is used without its client, which logs addresses with their queries, and keeps cookies.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import cache
from urllib.parse import unquote_plus, unquote_to_bytes
from urllib.request import getproxies, proxy_bypass

import h11
import httpx

from ..adapters.base import Upstream
from .errors import SandboxError
from .network import Verdict
from .served import Client, Gone, NotServed
from .serving import farewell, serve

log = logging.getLogger("taskyard.runner")

CONNECTIONS = 64
TIMEOUT = httpx.Timeout(None, connect=15.0, write=60.0)  # seconds; write: without progress
KEPT = 30.0  # seconds that an idle connection to the server is kept
METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"}  # TRACE would show the credential
HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
LOGINS = {b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"cookie"}

Headers = list[tuple[bytes, bytes]]


class Gateway:
    """One jail's way to the API of its model; serve() it once.

    `note` is told of each connection that brought requests, when it has ended. Raises SandboxError for an upstream that
    cannot be; neither that nor anything else said or logged here holds a credential.
    """

    def __init__(self, upstream: Upstream, note: Callable[[Verdict], None] | None = None) -> None:
        self._base = _base(upstream.url)
        self._headers = _checked(upstream.headers.items(), self._base.host)
        self._transport = _transport(self._base)
        self._note = note

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; then all requests are given up and all connections closed at once."""
        async with self._transport:
            await serve(listener, CONNECTIONS, self._handle)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(reader, writer)
        try:
            while (request := await client.request()) is not None:
                await self._pass_on(client, request)
        except NotServed as refused:
            await client.refuse(refused)
        finally:
            if client.requests and self._note is not None:
                reason = f"the model's API, {client.requests} request{'s' if client.requests > 1 else ''}"
                port = self._base.port or (443 if self._base.scheme == "https" else 80)
                self._note(Verdict(self._base.host, port, True, reason, client.sent, client.received))
        await farewell(reader, writer)

    async def _pass_on(self, client: Client, request: h11.Request) -> None:
        """Send one request on, and its answer back, unless the child goes away meanwhile. Raises NotServed, OSError."""
        theirs = [(name.lower(), value) for name, value in request.headers]
        if request.method not in METHODS:
            raise NotServed(405, "This method is not passed on.")
        if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in theirs):
            raise NotServed(426, "There are no WebSockets here: use plain HTTP.", [("Upgrade", "HTTP/1.1")])
        names = {name for name, _ in theirs}
        body = client.body() if names & {b"content-length", b"transfer-encoding"} else None
        outgoing = httpx.Request(
            request.method.decode(),
            joined(self._base, request.target, drop_key=bool(self._headers)),
            headers=sent_on(request.headers.raw_items(), self._headers),
            content=body,
            extensions={"timeout": TIMEOUT.as_dict()},
        )
        if body is None:
            await client.skip()
        client.requests += 1
        forwarding = asyncio.create_task(self._forward(client, outgoing))
        watching = asyncio.create_task(client.gone())
        try:
            await asyncio.wait({forwarding, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not forwarding.done():
                raise Gone
            await forwarding
        finally:
            for task in (forwarding, watching):
                task.cancel()
            await asyncio.gather(forwarding, watching, return_exceptions=True)

    async def _forward(self, client: Client, request: httpx.Request) -> None:
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            # No answer was there, so none is made up: a status would be read as the vendor's own word.
            raise self._failed(error) from None
        try:
            headers = sent_back(response.headers.raw, keep_cookies=not self._headers)
            await client.answer(response.status_code, headers, response.extensions.get("reason_phrase", b""))
            async for chunk in response.aiter_raw():
                await client.more(chunk)
        except httpx.TransportError as error:
            # The status is out: all that tells the child is an answer that does not come to its end.
            raise self._failed(error) from None
        finally:
            await response.aclose()
        await client.end()

    def _failed(self, error: httpx.TransportError) -> Gone:
        why = _why(error)
        log.warning("The model's API at %s %s. (%s)", self._base.host, why, type(error).__name__)
        if self._note is not None:
            self._note(Verdict(self._base.host, self._base.port or 443, False, f"it {why}", 0, 0))
        return Gone()


def joined(base: httpx.URL, target: bytes, *, drop_key: bool) -> httpx.URL:
    """The address of a request for `target`, below the base's own path; `drop_key` leaves out the parameter key.

    Raises NotServed for all but a path and a query: another server's address, a path that climbs up.
    """
    path, mark, query = target.partition(b"?")
    plain = unquote_to_bytes(path)
    if not re.fullmatch(rb"/[\x21-\x7e]*", target) or b"#" in target or re.search(rb"[\x00-\x1f\x7f\\]", plain):
        raise NotServed(400, "A request names a path, beginning with a slash.")
    if any(segment.split(b";")[0] in (b".", b"..") for segment in plain.split(b"/")):
        raise NotServed(400, "A path does not lead up.")
    if drop_key:
        query = b"&".join(part for part in query.split(b"&") if unquote_plus(part.decode()).split("=")[0] != "key")
    whole = base.raw_path.rstrip(b"/") + path + (mark + query if query else b"")
    try:
        return base.copy_with(raw_path=whole)
    except httpx.InvalidURL:
        raise NotServed(414, "The address is too long.") from None


def sent_on(theirs: Iterable[tuple[bytes, bytes]], ours: Headers) -> Headers:
    """Headers for the server: the child's with ours in their place; without ours, the child's own login too."""
    theirs = list(theirs)
    dropped = _of_connection(theirs) | {b"host", b"expect"} | {name.lower() for name, _ in ours}
    if ours:
        dropped |= LOGINS
    if any(name.lower() == b"transfer-encoding" for name, _ in theirs):
        dropped.add(b"content-length")
    kept = [(name, value) for name, value in theirs if name.lower() not in dropped]
    return [*kept, *ours]


def sent_back(headers: Iterable[tuple[bytes, bytes]], *, keep_cookies: bool) -> Headers:
    """Headers for the child. A cookie given to our credential would be one itself, so it stays here."""
    headers = list(headers)
    dropped = _of_connection(headers)
    if not keep_cookies:
        dropped.add(b"set-cookie")
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _of_connection(headers: Headers) -> set[bytes]:
    """Names that concern one connection only (RFC 9110, 7.6.1), those that it names itself included."""
    options = [value for name, value in headers if name.lower() == b"connection"]
    return HOP_BY_HOP | {option.strip().lower() for option in b",".join(options).split(b",")}


def _base(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url)
        known = base.scheme in ("http", "https") and base.host and not base.query and not base.fragment
    except httpx.InvalidURL:
        raise SandboxError(
            "The address of the model's API is none.", "Look at base_url in the provider's settings."
        ) from None
    if not known or base.userinfo:
        raise SandboxError(
            f"The model's API at {base.host} cannot be reached by an address like this one.",
            "It takes http or https, a host and a path, without a user, a password or a query.",
        )
    return base


def _checked(headers: Iterable[tuple[str, str]], host: str) -> Headers:
    """Raises SandboxError for what cannot be sent; left to h11, its message would quote the credential."""
    found: Headers = []
    for name, value in headers:
        if not value.isascii() or not value.isprintable() or value != value.strip():
            raise SandboxError(
                f"The credential for {host} cannot be sent: {name} holds a line break or another sign that it may not.",
                "Look at the variable that it comes from.",
            )
        found.append((name.encode(), value.encode()))
    return found


def _transport(base: httpx.URL) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT)
    if base.scheme == "http":
        # A context that trusts nobody: loading the certificates takes a while, and none is needed.
        return httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), limits=limits)
    try:
        return httpx.AsyncHTTPTransport(verify=_trusted(), limits=limits, proxy=_company_proxy(base.host))
    except (ValueError, ImportError, httpx.InvalidURL):
        raise SandboxError(
            "HTTPS_PROXY of the runner's environment is no proxy that can be used.",
            "It takes http:// or https://, a host and a port.",
        ) from None


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _company_proxy(host: str) -> str | None:
    if proxy_bypass(host):
        return None
    known = getproxies()
    found = known.get("https") or known.get("all")
    return f"http://{found}" if found and "://" not in found else found


def _why(error: httpx.TransportError) -> str:
    match error:
        case httpx.ConnectTimeout():
            return "took too long to accept a connection"
        case httpx.ProxyError():
            return "could not be reached through HTTPS_PROXY"
        case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return "has a certificate that is not trusted here"
        case httpx.ConnectError():
            return "could not be reached"
        case httpx.TimeoutException():
            return "does not take the request"
        case _:
            return "broke off the connection"
