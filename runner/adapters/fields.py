"""Taking fields out of JSON that a tool printed: whatever is there instead of the expected type counts as absent."""

from typing import Any


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


def first_line(text: str, limit: int = 500) -> str:
    """The first line that says something."""
    return next((line.strip()[:limit] for line in text.splitlines() if line.strip()), "")
