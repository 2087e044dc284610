"""MCP over HTTP by the official SDK. Imported when the first agent needs it.

Who asks may be hostile, and the loop that answers is the one that renews the leases of all attempts of this runner. So
an attempt's requests are read and answered one after another, and none that would be costly to take apart is: the SDK
needs 4 s and 350 MB for a list of two million empty objects (8 MB), in one piece.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Generator
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from . import NAME, PATH
from .tools import TOOLS, Channel

logging.getLogger("mcp").setLevel(logging.WARNING)  # it tells of every request otherwise

MOST = 32  # connections at a time
LARGEST_REQUEST = 5 << 20  # bytes; a checkpoint may have 4 MB
MOST_VALUES = 400_000  # in one request, as told by the signs that JSON puts between them
ARRIVING = 30.0  # seconds for a request to be there as a whole
CLOSING = 2  # seconds for answers under way when the attempt ends

INSTRUCTIONS = "To work with other agents and humans: create children, wait for them, hand over, save your state, ask."


class _Http(uvicorn.Server):
    """Without signal handlers: those are the runner's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def serve(channel: Channel, knows: Callable[[bytes], bool], listener: socket.socket) -> None:
    """Answer on the listener until cancelled; `knows` judges an Authorization header."""
    manager = StreamableHTTPSessionManager(
        _server(channel),
        json_response=True,
        stateless=True,
        # Whoever reaches the listener is the child, or has its token: a browser has neither.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=LARGEST_REQUEST,
    )
    turn = asyncio.Lock()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        refusal = None
        if scope["path"] != PATH:
            refusal = PlainTextResponse("There is nothing here.", 404)
        elif not knows(given):
            refusal = PlainTextResponse("The token is missing or another's.", 401)
        elif scope["method"] != "POST":
            # Without sessions there is nothing to listen to, nor to end.
            refusal = PlainTextResponse("Only POST is answered.", 405, {"Allow": "POST"})
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        async with turn:
            try:
                body = await _whole(Request(scope, receive))
            except _TooMuch as too_much:
                await PlainTextResponse(str(too_much), too_much.status)(scope, receive, send)
            except ClientDisconnect:
                pass
            else:
                await manager.asgi_app(scope, _again(body, receive), send)

    config = uvicorn.Config(
        application,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        limit_concurrency=MOST,
        timeout_graceful_shutdown=CLOSING,
        ws="none",
        http="h11",
    )
    http = _Http(config)
    async with manager.run():
        try:
            await http.serve(sockets=[listener])
        finally:
            http.force_exit = True
            if http.started:
                await http.shutdown()


class _TooMuch(Exception):
    """The request is not looked at; `status` is HTTP's for that."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def _whole(request: Request) -> bytes:
    """The request's body. Raises _TooMuch, ClientDisconnect."""
    body = bytearray()
    try:
        async with asyncio.timeout(ARRIVING):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_REQUEST:
                    raise _TooMuch(413, f"A request has at most {LARGEST_REQUEST} bytes.")
    except TimeoutError:
        raise _TooMuch(408, f"A request has {ARRIVING:.0f} seconds to arrive.") from None
    if sum(body.count(sign) for sign in b",:[{") > MOST_VALUES:
        raise _TooMuch(413, f"A request has at most {MOST_VALUES} values.")
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read, and then what comes after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_one() -> Message:
        return left.pop() if left else await receive()

    return next_one


def _server(channel: Channel) -> Server[dict[str, Any]]:
    async def tools(
        _: ServerRequestContext[dict[str, Any]], __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[types.Tool(name=one.name, description=one.description, input_schema=one.schema) for one in TOOLS]
        )

    async def call(_: ServerRequestContext[dict[str, Any]], asked: types.CallToolRequestParams) -> types.CallToolResult:
        text, done = await channel.answer(asked.name, asked.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=not done)

    return Server(NAME, instructions=INSTRUCTIONS, on_list_tools=tools, on_call_tool=call)
