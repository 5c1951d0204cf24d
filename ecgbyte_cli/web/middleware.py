"""Checks before any route runs: Host, Origin, token, size and time of a request.

Pages of other sites must reach nothing here. The Host header is checked against names that another site points at
this machine (DNS rebinding), Origin and Sec-Fetch-Site against its forms and scripts. A proxy's name is accepted
if `serve --allow-host` names it; forwarding headers are ignored.
"""

import asyncio
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ecgbyte_cli.failure import Failure

HEAD_SECONDS = 15.0  # to receive the head of a request
CHUNK_SECONDS = 20.0  # between two chunks of the body, and until the client takes a chunk of the response
BODY_SECONDS = 600.0  # to receive the whole body
BODY_BYTES = 2**16  # body of a request other than an upload
LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "ecgbyte_token"
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII | re.IGNORECASE)
NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
USUAL_PORTS = {"http": 80, "https": 443}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Failure):
    """A refused request, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Guard:
    """Reject a request, or pass it on with limits on its size and time.

    Parameters
    ----------
    app
        The ASGI application that requests are passed to.
    host : str
        The address that the server listens on.
    token : str or None
        The token that requests need if others can reach the server.
    upload_bytes : int
        Largest upload.
    allowed : iterable of (str, int or None)
        More names of the server, such as a proxy's, from `allowed_host`; None allows any port.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        token: str | None,
        upload_bytes: int,
        allowed: Iterable[tuple[str, int | None]] = (),
    ):
        self.app, self.token, self.upload_bytes, self.allowed = app, token, upload_bytes, frozenset(allowed)
        self.names = {host.lower(), *LOOPBACK}
        if token:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # startup and shutdown; there are no web sockets
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in known),
                ]
            await asyncio.wait_for(send(message), CHUNK_SECONDS)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            cookie = self._check(scope, headers)
        except Refused as refused:
            return await _refuse(refused, receive, send_with_headers)
        if cookie:
            redirect = [(b"location", b"./"), (b"content-length", b"0"), (b"set-cookie", cookie.encode())]
            await send_with_headers({"type": "http.response.start", "status": 303, "headers": redirect})
            return await send_with_headers({"type": "http.response.body", "body": b""})
        await self.app(scope, self._bounded(scope, receive), send_with_headers)

    def _check(self, scope: Scope, headers: dict[str, str]) -> str | None:
        """Check the head of a request; return the cookie to set if the address contains the token."""
        host = headers.get("host", "")
        if not self._is_named(host):
            raise Refused(403, f"{host[:80]!r} is not the name of this server (--allow-host adds a proxy's)")
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if (origin is not None and not self._is_own(origin, host)) or (
            foreign and (scope["path"] != "/" or scope["method"] != "GET")
        ):
            raise Refused(403, "the request comes from another site: refused")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length is not a number")
        if int(length[:20]) > self._most(scope):
            raise Refused(413, f"too large: {self._most(scope)} bytes at most")
        if self.token is None:
            return None
        query_token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _tokens_equal(query_token, self.token):
            # without Path the cookie is limited to the page's own path, possibly below a proxy's
            return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict"
        if not (
            any(_tokens_equal(value, self.token) for value in _cookies(headers.get("cookie", "")))
            or _tokens_equal(headers.get("authorization", "").removeprefix("Bearer "), self.token)
        ):
            raise Refused(401, "the token is missing: open the address that `ecgbyte serve` printed")
        return None

    def _is_named(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        parts = split_host(host)
        if parts is None:
            return False
        name, port = parts
        if name in self.names or (self.token is not None and _is_address(name)):
            return True
        # a proxy may pass its name without the port
        return any(name == other and (port is None or its in (None, port)) for other, its in self.allowed)

    def _is_own(self, origin: str, host: str) -> bool:
        """Return whether an Origin is this server, under the requested name or an allowed one."""
        scheme, _, netloc = origin.partition("://")
        parts = split_host(netloc)
        if parts is None or scheme not in USUAL_PORTS:
            return False
        name, port = parts
        ports = {its for other, its in self.allowed if other == name}
        if ports & {None, port or USUAL_PORTS[scheme]}:
            return True
        # a name allowed at one port is rejected at another, even if the Host header has lost its port
        return (not ports or name in self.names) and netloc.lower() == host.lower()

    def _most(self, scope: Scope) -> int:
        return self.upload_bytes if scope["path"].startswith("/api/upload/") else BODY_BYTES

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive` so that a body that is too large or too slow is refused."""
        read, complete, deadline = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:  # the next message says that the client has gone
                return await receive()
            try:
                left = deadline - asyncio.get_running_loop().time()
                message: Message = await asyncio.wait_for(receive(), max(min(CHUNK_SECONDS, left), 0.01))
            except TimeoutError:
                raise Refused(408, "the request came too slowly") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._most(scope):
                raise Refused(413, f"too large: {self._most(scope)} bytes at most")
            return message

        return bounded


async def _refuse(refused: Refused, receive: Receive, send: Send) -> None:
    """Send the error; drain the request for a moment, so that the client reads the response."""
    body = json.dumps({"error": refused.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(2):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


def _tokens_equal(candidate: str, token: str) -> bool:
    return hmac.compare_digest(candidate.encode("utf-8", "replace"), token.encode())


def _cookies(header: str) -> list[str]:
    """Return the tokens in a Cookie header; servers at other paths of the host may have their own."""
    parts = (part.strip().partition("=") for part in header.split(";"))
    return [value for name, _, value in parts if name == COOKIE]


def split_host(text: str) -> tuple[str, int | None] | None:
    """Split a host into its lower-case name and port; return None if it is invalid. IP addresses are normalized."""
    match = HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535:
        return None
    name, port = match[1].lower(), int(match[2]) if match[2] else None
    if _is_address(name.strip("[]")):
        return str(ipaddress.ip_address(name.strip("[]"))), port
    return None if name.startswith("[") else (name, port)


def allowed_host(text: str) -> tuple[str, int | None]:
    """Parse a host of `--allow-host`.

    Parameters
    ----------
    text : str
        A host name or an IP address, with or without a port; an address such as `https://NAME/` counts as its name.

    Returns
    -------
    (str, int or None)
        See `split_host`.

    Raises
    ------
    ValueError
        If it is anything else, such as a pattern.
    """
    bare = re.sub(r"^https?://|(?<=[^/])/$", "", text.strip(), flags=re.IGNORECASE)
    try:
        bare = f"[{bare}]" if bare.count(":") > 1 and _is_address(bare) else bare.encode("idna").decode()
        host = split_host(bare)
    except UnicodeError:
        host = None
    if host and host[1] != 0 and (_is_address(host[0]) or _is_name(host[0])):
        return host
    raise ValueError("a host name or an IP address, with or without a port, as in ecg.example.org")


def _is_name(name: str) -> bool:
    """Return whether a text is a host name. A name that ends in a number would be an IP address."""
    return len(name) <= 253 and NAME.fullmatch(name) is not None and not name.rpartition(".")[2].isdigit()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with a time limit on the head of a request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy():
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self._busy() and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()
