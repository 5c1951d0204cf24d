"""Who may ask the server and how much: hosts, origins, a token, sizes and times, before a route sees anything.

A page of another site must reach nothing here, be it by a name that it points at this machine (the Host header is
checked) or by a form or a script of its own (Origin and Sec-Fetch-Site are). The name of a proxy is accepted where
`serve --allow-host` says it; headers by which a proxy would name itself are not believed.
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

HEAD_SECONDS = 15.0  # until a request's head is there
CHUNK_SECONDS = 20.0  # between two parts of its body, and until a part of the answer is taken
BODY_SECONDS = 600.0  # until all of its body is there
BODY_BYTES = 2**16  # of a request that is no upload
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
    """A request that is refused, with its status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Guard:
    """Refuses requests, or hands them on with bounds on their body and on the time that they take.

    Parameters
    ----------
    app
        The ASGI application behind.
    host : str
        The address that the server listens at.
    token : str or None
        What a request must know where that is not loopback.
    upload_bytes : int
        Of a file that is uploaded.
    allowed : iterable of (str, int or None)
        Further names of the server, such as a proxy's, from `allowed_host`: without a port at any port.
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
        if scope["type"] != "http":  # the start and the end of the server; there are no web sockets
            return await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
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
            return await _refuse(refused, receive, answer)
        if cookie:
            moved = [(b"location", b"./"), (b"content-length", b"0"), (b"set-cookie", cookie.encode())]
            await answer({"type": "http.response.start", "status": 303, "headers": moved})
            return await answer({"type": "http.response.body", "body": b""})
        await self.app(scope, self._bounded(scope, receive), answer)

    def _check(self, scope, headers):
        """Refuse a request by its head; return the cookie to set if it is the first one with the token."""
        host = headers.get("host", "")
        if not self._is_named(host):
            raise Refused(403, f"{host[:80]!r} is not the name of this server (--allow-host adds a proxy's)")
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if (origin is not None and not self._is_own(origin, host)) or (
            foreign and (scope["path"] != "/" or scope["method"] != "GET")
        ):
            raise Refused(403, "another site asks: refused")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length is no number")
        if int(length[:20]) > self._most(scope):
            raise Refused(413, f"too large: {self._most(scope)} bytes at most")
        if self.token is None:
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _tokens_equal(asked, self.token):
            # without a Path the browser takes that of the page: below a proxy's path, and not all of its host
            return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict"
        if not (
            any(_tokens_equal(value, self.token) for value in _cookies(headers.get("cookie", "")))
            or _tokens_equal(headers.get("authorization", "").removeprefix("Bearer "), self.token)
        ):
            raise Refused(401, "the token is missing: open the address that `ecgbyte serve` printed")
        return None

    def _is_named(self, host: str) -> bool:
        """Whether a Host header names this server."""
        found = split_host(host)
        if found is None:
            return False
        name, port = found
        if name in self.names or (self.token is not None and _is_address(name)):
            return True
        # a proxy may hand on its name without the port
        return any(name == one and (port is None or its in (None, port)) for one, its in self.allowed)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether an Origin is the server under the name that was asked, or under one that is allowed."""
        scheme, _, netloc = origin.partition("://")
        found = split_host(netloc)
        if found is None or scheme not in USUAL_PORTS:
            return False
        name, port = found
        ports = {its for one, its in self.allowed if one == name}
        if ports & {None, port or USUAL_PORTS[scheme]}:
            return True
        # a name that is allowed at one port alone is not so at another, even where the Host has lost its port
        return (not ports or name in self.names) and netloc.lower() == host.lower()

    def _most(self, scope):
        return self.upload_bytes if scope["path"].startswith("/api/upload/") else BODY_BYTES

    def _bounded(self, scope, receive):
        """`receive`, which refuses a body that is too large or comes too slowly."""
        read, whole, until = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            try:
                left = until - asyncio.get_running_loop().time()
                message: Message = await asyncio.wait_for(receive(), max(min(CHUNK_SECONDS, left), 0.01))
            except TimeoutError:
                raise Refused(408, "the request came too slowly") from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._most(scope):
                raise Refused(413, f"too large: {self._most(scope)} bytes at most")
            return message

        return bounded


async def _refuse(refused, receive, send):
    """Say why, and take what the client still sends for a moment, so that it reads the answer."""
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


def _tokens_equal(given, token):
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _cookies(header: str) -> list[str]:
    """The tokens in a Cookie header: several where servers at other paths of the host have theirs."""
    parts = (part.strip().partition("=") for part in header.split(";"))
    return [value for name, _, value in parts if name == COOKIE]


def split_host(text: str) -> tuple[str, int | None] | None:
    """Split the host of an address into name and port: lower case, IP addresses in one form; None if it is none."""
    match = HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535:
        return None
    name, port = match[1].lower(), int(match[2]) if match[2] else None
    if _is_address(name.strip("[]")):
        return str(ipaddress.ip_address(name.strip("[]"))), port
    return None if name.startswith("[") else (name, port)


def allowed_host(text: str) -> tuple[str, int | None]:
    """Read a host that `--allow-host` names.

    Parameters
    ----------
    text : str
        A host name or an IP address, with or without a port; an address such as `https://NAME/` counts as its name.

    Returns
    -------
    (str, int or None)
        As `split_host`.

    Raises
    ------
    ValueError
        If it is anything else, such as a pattern.
    """
    bare = re.sub(r"^https?://|(?<=[^/])/$", "", text.strip(), flags=re.IGNORECASE)
    try:
        bare = f"[{bare}]" if bare.count(":") > 1 and _is_address(bare) else bare.encode("idna").decode()
        found = split_host(bare)
    except UnicodeError:
        found = None
    if found and found[1] != 0 and (_is_address(found[0]) or _is_name(found[0])):
        return found
    raise ValueError("a host name or an IP address, with a port or without, as in ecg.example.org")


def _is_name(name: str) -> bool:
    """Whether a text is a host name; what ends in a number would be an IP address."""
    return len(name) <= 253 and NAME.fullmatch(name) is not None and not name.rpartition(".")[2].isdigit()


def _is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP, which does not wait for ever for the head of a request."""

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

    def _busy(self):
        return self.cycle is not None and not self.cycle.response_complete

    def _cancel(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self):
        self._timer = None
        if not self._busy() and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()
