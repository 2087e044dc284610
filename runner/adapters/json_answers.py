"""Answers in JSON from tools that have no flag for a schema: asked for in the prompt, read from the final text."""

import json
import re
from typing import Any

from ..verbs import Ending, storable

_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL | re.IGNORECASE)


def instruction(schema: dict[str, Any]) -> str:
    """What goes below the prompt."""
    return (
        "When all is done, answer with one JSON value and nothing else: no words around it, no code fence. "
        f"It follows this JSON Schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


def completed(text: str, *, wants_json: bool) -> Ending:
    """The ending of a run that succeeded with this final text; failed where JSON was asked for and it is none.

    The value is parsed, not checked against the schema: that is for the task's own verification.
    """
    if not wants_json:
        return Ending("completed", text)
    stripped = text.strip()
    fenced = _FENCE.match(stripped)
    try:
        return Ending("completed", storable(json.loads(fenced[1] if fenced else stripped)))
    except (ValueError, RecursionError) as error:
        return Ending("failed", error=f"The answer is not the JSON value asked for: {error}.", evidence=text[-2000:])
