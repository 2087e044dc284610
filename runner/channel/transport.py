"""MCP over HTTP by the official SDK. Imported when the first agent needs it."""

import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from . import NAME, PATH
from .tools import TOOLS, Channel

MOST = 32  # connections at a time
LARGEST_REQUEST = 8 << 20  # bytes
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

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if scope["path"] != PATH:
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        elif not knows(given):
            await PlainTextResponse("The token is missing or another's.", 401)(scope, receive, send)
        else:
            await manager.asgi_app(scope, receive, send)

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
