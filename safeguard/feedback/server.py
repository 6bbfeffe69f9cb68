"""The page's server, over the standard library's: for one person, by one address, with a token of its own.

What it shows is what nobody wants to see, so whoever does not know the token is given the empty page and nothing else. The
token is in the part of the address behind ``#``, which no browser sends; the page sends it in a header, which no other site can
make it do.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from safeguard._log import get_logger
from safeguard.errors import FeedbackError
from safeguard.feedback.session import FeedbackSession

TOKEN: Final = "X-Safeguard-Token"
LARGEST: Final = 64 * 1024  # bytes of what the page sends
PATIENCE: Final = 30.0  # seconds for a request to come in

_PAGE: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/rank.js": ("rank.js", "text/javascript"),
}
_PICTURE: Final = re.compile(r"/images/([0-9a-f]{64})\.png")
_OPEN_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,200}")
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = get_logger("safeguard.feedback")


class FeedbackServer(ThreadingHTTPServer):
    """Serves a desk until `shutdown`. Port 0 is any free one; without ``token`` one is drawn.

    Another address than this machine's own needs a ``token`` that was chosen, and is one by which the machine is reached: the
    page is served to no other name. Raises FeedbackError where that does not hold, or the address is taken.
    """

    daemon_threads = True

    def __init__(self, desk: FeedbackSession, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        host = host.lower()
        check_address(host, token)
        self.desk, self.token = desk, token or secrets.token_urlsafe(32)
        self._open: set[Any] = set()  # connections, which a browser keeps for its next request
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as fault:
            why = getattr(fault, "strerror", None) or fault
            raise FeedbackError(f"{host}:{port}: cannot be served at ({why}); choose another --port or --host") from fault
        self._place = f"[{host}]:{self.server_port}" if ":" in host else f"{host}:{self.server_port}"
        names = {self._place, f"localhost:{self.server_port}"} if is_own(host) else {self._place}
        self.hosts = names | ({name.removesuffix(":80") for name in names} if self.server_port == 80 else set())
        folder = resources.files("safeguard.feedback")
        self.page = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()}

    @property
    def address(self) -> str:
        """What the person opens, token and all."""
        return f"http://{self._place}/#{self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Take no request more, by no connection."""
        super().server_close()
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke off; what a request does wrong is answered."""


def is_own(host: str) -> bool:
    """Whether an address is this machine's own, that no other reaches."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_address(host: str, token: str | None) -> None:
    """Raises FeedbackError for an address that would show the pictures to others unasked."""
    if token is not None and not _OPEN_TOKEN.fullmatch(token):
        raise FeedbackError("a token is of 16 to 200 letters, digits, - and _")
    if not is_own(host) and token is None:
        raise FeedbackError(f"{host} can be reached from other machines: say --token TOKEN too, of 16 characters or more")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            raise FeedbackError(f"{host} is every address at once: name the one by which people reach this machine")


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes
    kind: str = "application/json"
    status: int = HTTPStatus.OK


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, status: int, why: str) -> None:
        self.status = status
        super().__init__(why)


class _Handler(BaseHTTPRequestHandler):
    server: FeedbackServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "safeguard", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Callable[[str, dict[str, list[str]]], _Reply]) -> None:
        try:
            self._check_host()
            asked = urlsplit(self.path)
            reply = method(asked.path, parse_qs(asked.query))
        except _Refused as refusal:
            reply = _json({"error": str(refusal)}, refusal.status)
        except ValueError as fault:
            reply = _json({"error": str(fault)}, HTTPStatus.BAD_REQUEST)
        except FeedbackError as fault:
            reply = _json({"error": str(fault)}, HTTPStatus.CONFLICT)
        except Exception as fault:  # noqa: BLE001 - the page is told, whatever it was
            _log.error("feedback_request_failed", error=type(fault).__name__, exc_info=True)
            reply = _json({"error": "the server met an error; its terminal says which"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(reply)

    def _get(self, path: str, query: dict[str, list[str]]) -> _Reply:
        if path in self.server.page:
            body, kind = self.server.page[path]
            return _Reply(body, f"{kind}; charset=utf-8")
        self._check_token()
        if path == "/api/state":
            return _json(self.server.desk.state(query.get("concept", [None])[0]))
        picture = _PICTURE.fullmatch(path)
        if picture is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return _Reply(self.server.desk.store.png(picture[1]), "image/png")

    def _post(self, path: str, query: dict[str, list[str]]) -> _Reply:
        self._check_token()
        desk = self.server.desk
        does = {"/api/answer": desk.answer, "/api/rank": desk.rank, "/api/undo": desk.undo}.get(path)
        if does is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return _json(does(self._body()))

    def _check_host(self) -> None:
        """Against DNS rebinding: a strange name that leads here is not served."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "open the address that safeguard feedback serve printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://").lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "another site may not ask here")

    def _check_token(self) -> None:
        """Against other sites and other users of this machine."""
        token = self.headers.get(TOKEN, "").encode("utf-8", "replace")
        if not hmac.compare_digest(token, self.server.token.encode()):
            raise _Refused(
                HTTPStatus.UNAUTHORIZED, "open the address that safeguard feedback serve printed: its end is the key"
            )

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only JSON is read")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "say how long it is")
        if len(length) > 9 or int(length) > LARGEST:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST} bytes are read")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is not JSON") from None
        if not isinstance(body, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is no JSON object")
        return body

    def _send(self, reply: _Reply) -> None:
        if reply.status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # what was sent may be unread
        self.send_response(reply.status)
        for name, value in {**_HEADERS, "Content-Type": reply.kind, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself: another method, a line that is no request."""
        self._send(_json({"error": message or HTTPStatus(code).phrase}, code))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looked at which picture is no one's business."""


def _json(data: Any, status: int = HTTPStatus.OK) -> _Reply:
    return _Reply(json.dumps(data).encode(), status=status)
