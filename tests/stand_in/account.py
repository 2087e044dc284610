"""One account with a vendor: what it will answer, and what it was asked."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from .request import Request
from .script import Answer, HttpError, Refusal, Step

Model = Callable[[datetime, Request], Step]

AFTER_THE_SCRIPT = Answer("Done.")


class Account:
    """Made by StandIn.account(). Any number of programs and tests may use it at once.

    Every protocol is spoken at `url`: it is ANTHROPIC_BASE_URL and GOOGLE_GEMINI_BASE_URL as it is; Codex, opencode and
    other clients of OpenAI's protocols want `url` + "/v1".
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._changed = threading.Condition()
        self._steps: list[Step | Model] = []
        self._model: Model | None = None
        self._limit: tuple[Step, datetime | None] | None = None
        self._log: list[Request] = []
        self._released = threading.Event()
        self._asides = 0
        self._open = 0
        self._most_open = 0

    def script(self, *steps: Step | Model) -> "Account":
        """Answer with these steps, one per request in the order they come, and then with "Done.".

        A step may be a function of (now, request) that returns a step; given alone it answers every request.
        """
        with self._changed:
            self._model = None
            self._steps = list(steps)
            if len(steps) == 1 and callable(steps[0]):
                self._model = steps[0]
            self._released.clear()
        return self

    def limit(self, refusal: Refusal | HttpError, until: datetime | None = None) -> "Account":
        """Refuse every request until that moment, else until the refusal's own reset, else until lift().

        No step of the script is used up meanwhile.
        """
        with self._changed:
            self._limit = (refusal, until or (refusal.resets_at if isinstance(refusal, Refusal) else None))
        return self

    def lift(self) -> None:
        """End the limit."""
        with self._changed:
            self._limit = None

    def release(self) -> None:
        """Let stalled streams and silent answers go on, those to come too, until the next script()."""
        self._released.set()

    @property
    def requests(self) -> list[Request]:
        """The requests for an answer so far, in the order they came, refused ones too."""
        with self._changed:
            return list(self._log)

    @property
    def refused(self) -> list[Request]:
        """Those that were answered with a status of 400 or more."""
        return [request for request in self.requests if request.status >= 400]

    @property
    def asides(self) -> int:
        """How often a program asked something besides its conversation; no step answers that, and no log row shows it."""
        with self._changed:
            return self._asides

    @property
    def most_at_once(self) -> int:
        """The largest number of requests that were open at the same time."""
        with self._changed:
            return self._most_open

    def most_within(self, window: timedelta) -> int:
        """The largest number of requests that any stretch of so long saw."""
        times = [request.at for request in self.requests]
        return max((sum(at <= other < at + window for other in times) for at in times), default=0)

    def wait_for(self, n: int, seconds: float = 30.0) -> list[Request]:
        """Wait until it was asked n times; returns the requests. Fails after `seconds`, with the log."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self._log) < n:
                if not self._changed.wait(deadline - time.monotonic()):
                    seen = "\n".join(map(str, self._log)) or "none"
                    raise AssertionError(f"{self.name}: waited {seconds:.0f} s for {n} requests; there were:\n{seen}")
            return list(self._log)

    # What follows is the server's side.

    def step_for(self, request: Request) -> Step:
        """What to answer."""
        with self._changed:
            step = self._next()
        while not isinstance(step, Answer | Refusal | HttpError):
            step = step(datetime.now(UTC), request)
        return step

    def begin(self, request: Request) -> None:
        """Write the request to the log; it is open until end()."""
        with self._changed:
            self._log.append(request)
            self._open += 1
            self._most_open = max(self._open, self._most_open)
            self._changed.notify_all()

    def end(self) -> None:
        """A request is over."""
        with self._changed:
            self._open -= 1

    def count_aside(self) -> None:
        with self._changed:
            self._asides += 1

    def is_released(self) -> bool:
        return self._released.is_set()

    def _next(self) -> Step | Model:
        if self._limit is not None:
            refusal, until = self._limit
            if until is None or datetime.now(UTC) < until:
                return refusal
            self._limit = None
        if self._model is not None:
            return self._model
        return self._steps.pop(0) if self._steps else AFTER_THE_SCRIPT
