"""The same screens in a browser, by textual-serve: one process of `taskyard tui` for each tab that is open.

Whoever reaches it acts with the rights of its database login. So it listens on loopback unless told otherwise; wider
only with a password; and it answers no page of another site, which could open a connection to loopback from the
user's own browser (the WebSocket protocol has no same-origin policy: RFC 6455, section 10.2; DNS rebinding is why the
Host header is looked at too).
"""

import asyncio
import base64
import hmac
import ipaddress
import os
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp_jinja2
import psutil
from aiohttp import web
from textual_serve.server import Server

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

USER = "taskyard"  # of the browser's own window for names and passwords (RFC 7617)
ENDING = 5.0  # seconds that the processes of tabs have for their end
REALM = 'Basic realm="Taskyard", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and what is asked of whoever comes; None: nothing."""

    host: str
    port: int
    password: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this host reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def url(self) -> str:
        """Where a browser finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


def listen(host: str, port: int, password: str | None) -> Listen:
    """Where to listen; beyond loopback a password is made up where none is given."""
    found = Listen(host, port, password or None)
    return found if found.password or found.loopback else Listen(host, port, secrets.token_urlsafe(12))


def refusal(where: Listen, host: str | None, origin: str | None, authorization: str | None) -> int | None:
    """The HTTP status by which a request is refused; None where it is answered."""
    name = urlsplit(f"//{host or ''}").hostname or ""
    if where.loopback and name not in ("localhost", "127.0.0.1", "::1", where.host):
        return 403
    if origin is not None and urlsplit(origin).netloc != host:
        return 403
    if where.password is None:
        return None
    expected = base64.b64encode(f"{USER}:{where.password}".encode()).decode()
    given = (authorization or "").partition(" ")
    if given[0].lower() != "basic" or not hmac.compare_digest(given[2].strip().encode(), expected.encode()):
        return 401
    return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _tabs_end(_: web.Application) -> None:
    """Wait for the processes of the tabs: a loop that is closed before it heard of their ends complains of them."""
    tabs = psutil.Process().children()
    for _step in range(int(ENDING / 0.05)):
        if not any(_alive(tab) for tab in tabs):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)


class Web(Server):
    """Serves the screens."""

    def __init__(self, where: Listen, dsn: str) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            shlex.join([sys.executable, "-m", "taskyard.runner.cli", "tui"]), where.host, where.port, "Taskyard"
        )
        self._where = where
        os.environ["TASKYARD_DSN"] = dsn  # for the processes of the tabs: a command line is everybody's to read

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard())
        app.on_cleanup.append(_tabs_end)
        return app

    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            headers = request.headers
            status = refusal(self._where, headers.get("Host"), headers.get("Origin"), headers.get("Authorization"))
            if status == 401:
                return web.Response(status=401, text="A password is needed.", headers={"WWW-Authenticate": REALM})
            if status is not None:
                return web.Response(status=status, text="Not from there.")
            return await handler(request)

        return guard

    @aiohttp_jinja2.template("app_index.html")
    async def handle_index(self, request: web.Request) -> dict[str, Any]:
        """The page; its addresses are those by which this browser came."""
        size = request.query.get("fontsize", "16")
        return {
            "font_size": int(size) if size.isdigit() else 16,
            "app_websocket_url": f"{'wss' if request.scheme == 'https' else 'ws'}://{request.host}/ws",
            "config": {"static": {"url": f"{request.scheme}://{request.host}/static/"}},
            "application": {"name": "Taskyard"},
        }

    async def on_startup(self, app: web.Application) -> None:
        """Nothing is said here: the command line has."""

    def initialize_logging(self) -> None:
        """As the command line has it."""
