"""The yard's metrics for a scraper: what the database's metrics_text() says, over HTTP."""

import logging
from collections.abc import Callable

import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .connection import Yard, value
from .errors import TaskyardError

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PATIENCE = 10  # seconds that a scrape may take in the database; Prometheus gives up after as many

log = logging.getLogger("taskyard.metrics")


def metrics_text(connection: Yard) -> str:
    """The metrics as OpenMetrics text. Raises psycopg.Error."""
    return value(connection, "select taskyard.metrics_text()")


def application(connect: Callable[[], Yard]) -> Starlette:
    """An app whose /metrics asks the database anew each time; 503 with a sentence where it does not answer.

    `connect` opens a connection, which is closed after the scrape: a scraper comes every quarter of a minute or so.
    """

    def scrape(_: Request) -> Response:
        try:
            with connect() as yard:
                yard.execute(f"set statement_timeout = '{PATIENCE}s'".encode())
                return PlainTextResponse(metrics_text(yard), media_type=CONTENT_TYPE)
        except (TaskyardError, psycopg.Error) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("no metrics: %s", said)
            return PlainTextResponse(f"No metrics: {said}\n", status_code=503)

    def about(_: Request) -> Response:
        return PlainTextResponse("Taskyard's metrics are at /metrics.\n")

    return Starlette(routes=[Route("/metrics", scrape), Route("/", about)])


def serve(connect: Callable[[], Yard], host: str, port: int) -> None:
    """Serve /metrics until Ctrl-C. Raises OSError where the port cannot be had."""
    config = uvicorn.Config(application(connect), host=host, port=port, log_level="warning", access_log=False)
    uvicorn.Server(config).run()
