"""An attempt's own way to the yard: tools by which an agent works with others, without any credential of the database.

tools.py says what there is, server.py serves it (MCP over HTTP), client.py is for agents that do not speak MCP.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """Where a child finds its channel: an MCP server's URL, and the token that it wants (a bearer token)."""

    url: str
    token: str


NAME = "taskyard"  # of the MCP server in the tools' configurations
PATH = "/mcp"
URL, TOKEN = "TASKYARD_CHANNEL", "TASKYARD_TOKEN"  # the child's variables
CONNECT_TIMEOUT = 60  # seconds
CALL_TIMEOUT = 600  # seconds; the database may be away for a while
