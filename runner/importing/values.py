"""Single values as SQLite has them, and what they are here. What is understood otherwise is counted in `notes`."""

import json
import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

PRIORITIES = {"lowest": -100, "low": -50, "normal": 0, "medium": 0, "default": 0} | {
    "high": 50,
    "highest": 100,
    "urgent": 100,
    "critical": 100,
}


def as_text(value: Any) -> str | None:
    """As text, without the space around it; None where there is nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    text = str(value).strip()
    return text or None


def truth(value: Any) -> bool:
    """1, true, yes."""
    return (as_text(value) or "0").lower() in ("1", "true", "t", "yes", "y")


def json_value(value: Any, name: str, notes: Counter[str]) -> Any:
    """JSON, or the text where it is none."""
    text = as_text(value)
    if text is None:
        return None
    try:
        return _storable(json.loads(text))
    except (ValueError, RecursionError):
        notes[f"{name} that is no JSON, taken as text"] += 1
        return text


def result(value: Any) -> Any:
    """JSON where it is an object or a list; anything else is the text that the agent gave back."""
    text = as_text(value)
    if text is None or text[0] not in "{[":
        return text
    try:
        return _storable(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _storable(value: Any) -> Any:
    """The same without what jsonb refuses: NULs and halves of surrogate pairs. Raises ValueError for infinite ones."""
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number beyond all bounds is no JSON")
    if isinstance(value, dict):
        return {_whole_text(key): _storable(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list):
        return [_storable(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _whole_text(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\0", ""))


def as_object(payload: Any) -> dict[str, Any]:
    """The payload, as an object to which something can be added."""
    if payload is None:
        return {}
    return payload if isinstance(payload, dict) else {"payload": payload}  # pyright: ignore[reportUnknownVariableType]


def ids(value: Any) -> tuple[str, ...]:
    """`[1, 2]`, `1,2` or a number."""
    text = as_text(value)
    if text is None:
        return ()
    found: Any = None
    if text[0] == "[":
        try:
            found = json.loads(text)
        except ValueError:
            found = text.strip("[]").split(",")
    parts: list[Any] = found if isinstance(found, list) else re.split(r"[,;\s]+", text)  # pyright: ignore[reportUnknownVariableType]
    return tuple(dict.fromkeys(str(part).strip().strip("'\"") for part in parts if str(part).strip().strip("'\"")))


def priority(value: Any, notes: Counter[str]) -> int:
    """A number, or one of PRIORITIES; cut to the range."""
    text = (as_text(value) or "0").lower()
    if text in PRIORITIES:
        return PRIORITIES[text]
    try:
        found = int(float(text))
    except (ValueError, OverflowError):
        notes["priorities that are no number, taken as 0"] += 1
        return 0
    if not -1000 <= found <= 1000:
        notes["priorities beyond 1,000, cut to that"] += 1
    return max(-1000, min(found, 1000))


def whole_number(value: Any, least: int, most: int, name: str, notes: Counter[str]) -> int | None:
    """Within the range, or None."""
    text = as_text(value)
    if text is None:
        return None
    try:
        found = int(float(text))
    except (ValueError, OverflowError):
        found = least - 1
    if not least <= found <= most:
        notes[f"{name} out of range, left out"] += 1
        return None
    return found


def seconds(value: Any, notes: Counter[str]) -> float | None:
    """More than nothing, and at most 30 days; or None."""
    text = as_text(value)
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= timedelta(days=30).total_seconds():
        notes["time-outs that are no seconds between 0 and 30 days, left out"] += 1
        return None
    return found


def moment(value: Any, name: str, zone: tzinfo, notes: Counter[str]) -> datetime | None:
    """ISO 8601 and SQLite's own texts, in `zone` where they name none; seconds or milliseconds since 1970."""
    text = as_text(value)
    if text is None:
        return None
    try:
        if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text):
            number = float(text)
            if abs(number) < 1e7:
                raise ValueError("a year, a Julian day, or nothing of the kind")
            return datetime.fromtimestamp(number / 1000 if abs(number) >= 1e11 else number, UTC)
        found = datetime.fromisoformat(re.sub(r"\s+(UTC|GMT)$", "+00:00", text))
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        notes[f"{name} that is no time, left out"] += 1
        return None
