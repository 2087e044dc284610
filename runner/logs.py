"""Logs: one line for each event, for a person or as JSON, and no secret in any of them."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

from .connection import redacted

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")

# What an API key or a bearer token looks like, wherever it stands.
_SECRETS = re.compile(
    r"(?i)(\bbearer\s+|\bauthorization:\s*\w+\s+)[\w.~+/=-]{8,}|\b(sk|key|ghp|gho|glpat|xox[bp])[-_][\w-]{16,}"
)


def clean(text: str) -> str:
    """The text on one line, without passwords of connection strings, keys and tokens."""
    hidden = _SECRETS.sub(lambda found: f"{found[1] or ''}***", redacted(text))
    return hidden.replace("\r", "").replace("\n", " | ")


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        told = super().format(record)
        if record.exc_info:
            return "\n".join(clean(line) for line in told.splitlines())  # a traceback is read by its lines
        return clean(told)


class _Json(logging.Formatter):
    """{"time", "level", "logger", "event"}, and what the event carries as extra fields; "trace" for a traceback."""

    KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": clean(record.getMessage()),
        }
        told |= {
            name: clean(value) if isinstance(value, str) else value
            for name, value in vars(record).items()
            if name not in self.KNOWN
        }
        if record.exc_info:
            told["trace"] = [clean(line) for line in self.formatException(record.exc_info).splitlines()]
        return json.dumps(told, ensure_ascii=False, default=str)


def set_up(form: Format = "text", verbose: bool = False) -> None:
    """Write the log to standard error. Repeating it changes the form, and writes nothing twice."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known.formatter, _Text | _Json)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Its debug log quotes every event of the loop, and nobody asked for those.
    logging.getLogger("asyncio").setLevel(logging.INFO)
    # It would log addresses, which are secrets where they belong to ntfy or a webhook.
    logging.getLogger("httpx").setLevel(logging.WARNING)
