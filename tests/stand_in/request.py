"""One request as the stand-in saw it: the row of its log, and what a script's function looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .script import Answer


@dataclass(frozen=True, slots=True)
class Asked:
    """What a protocol's module reads from a request.

    `text` is what the user said since the model's last answer, with whatever the program adds to it; `results` what tool
    calls brought back since then. `aside` is the answer where the program asks something besides its conversation (a
    title, which model to take): that takes no step of the script. As a dictionary it is the whole body.
    """

    model: str
    stream: bool
    tools: tuple[str, ...] = ()
    text: str = ""
    results: tuple[str, ...] = ()
    aside: Answer | dict[str, Any] | None = None


@dataclass(slots=True)
class Request:
    """A request for an answer of the model.

    `path` is below the account's address. `headers` have lower-case names. `key` is the credential it came with. `body`
    is the first MiB of it. `step` and `status` are what it is answered with; `hung_up` tells that the client did not wait
    for the end.
    """

    account: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    asked: Asked
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    step: str = ""
    status: int = 0
    hung_up: bool = False

    @property
    def model(self) -> str:
        return self.asked.model

    @property
    def tools(self) -> tuple[str, ...]:
        return self.asked.tools

    @property
    def text(self) -> str:
        return self.asked.text

    @property
    def results(self) -> tuple[str, ...]:
        return self.asked.results

    @property
    def key(self) -> str | None:
        """The API key or token, wherever the vendor wants it."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-api-key") or self.headers.get("x-goog-api-key") or bearer or None

    def __str__(self) -> str:
        hung_up = ", hung up" if self.hung_up else ""
        return f"{self.at:%H:%M:%S.%f} {self.account} {self.path} {self.model}: {self.status} {self.step}{hung_up}"
