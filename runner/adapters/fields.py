"""Taking fields out of JSON that a tool printed: whatever is there instead of the expected type counts as absent."""

from typing import Any

from .tools import TEXT_LIMIT


def obj(value: Any) -> dict[str, Any]:
    """The object, or an empty one."""
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def objs(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def string(value: Any) -> str:
    """The text, or an empty one."""
    return value if isinstance(value, str) else ""


def strings(value: Any) -> list[str]:
    """The texts of a list."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def number(value: Any) -> float | None:
    """The number, if it is a finite one from 0 up."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        return None
    return value


def count(value: Any) -> int:
    """The whole number from 0 up that a column can hold, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else 0


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """What a row of a transcript can hold: no NUL, no half of a surrogate pair, at most `limit` characters."""
    return text[:limit].replace("\0", "").encode(errors="replace").decode()


def clipped(value: Any, limit: int = TEXT_LIMIT) -> Any:
    """The same JSON with every text in it clipped; None where it is nested too deeply to be of any use."""
    try:
        return _clipped(value, limit)
    except RecursionError:
        return None


def _clipped(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return clip(value, limit)
    if isinstance(value, list):
        return [_clipped(one, limit) for one in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {clip(str(key), limit): _clipped(one, limit) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


def first_line(text: str, limit: int = 500) -> str:
    """The first line that says something."""
    return next((clip(line.strip(), limit) for line in text.splitlines() if line.strip()), "")
