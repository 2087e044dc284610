"""What the server needs to know of a vendor's protocol."""

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .request import Asked
from .script import Answer, HttpError, Refusal


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event. `word` marks those that carry the model's words: a slow stream pauses at them."""

    data: Any
    event: str | None = None
    word: bool = False

    def encode(self) -> bytes:
        data = self.data if isinstance(self.data, str) else json.dumps(self.data)
        name = f"event: {self.event}\n" if self.event else ""
        return f"{name}data: {data}\n\n".encode()


class Protocol(ABC):
    """A vendor's way of asking and answering. Pure: values in, values out."""

    @abstractmethod
    def read(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Asked | None:
        """What is asked, or None where this is no request of the protocol. `body` is parsed JSON, None without one."""

    @abstractmethod
    def whole(self, asked: Asked, answer: Answer) -> Any:
        """The answer as one JSON document."""

    @abstractmethod
    def stream(self, asked: Asked, answer: Answer) -> Iterable[Frame]:
        """The answer as a stream."""

    @abstractmethod
    def refuse(self, asked: Asked, refusal: Refusal) -> HttpError:
        """The vendor's status, headers and body."""

    @abstractmethod
    def fail(self, asked: Asked, error: HttpError) -> Iterable[Frame]:
        """The same in a stream that began well."""


def words(text: str) -> list[str]:
    """The pieces that a streamed text comes in."""
    return re.findall(r"\s*\S+\s*", text) or ([text] if text else [])


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def joined(content: Any) -> str:
    """The words of a message's content: a text, or a list of parts of which some have a text."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = content or []
    return "\n".join(part["text"] for part in parts if "text" in part)
