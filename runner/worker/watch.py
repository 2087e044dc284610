"""When is a run too slow? Three time-outs, each with an outcome of its own."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Late = Literal["timed_out", "stalled"]


@dataclass(slots=True)
class Watch:
    """Times in seconds of a monotonic clock.

    `limit` is the wall clock of the attempt; `first_output` holds until the agent first speaks, `idle` between two
    signs of life after that. None for no limit.
    """

    started: float
    limit: timedelta
    first_output: timedelta | None
    idle: timedelta | None
    spoke: bool = False
    last: float = 0.0

    def sign_of_life(self, now: float, spoke: bool) -> None:
        """Output came; `spoke` where it came from the agent itself and not only from its tool."""
        self.last = now
        self.spoke = self.spoke or spoke

    def verdict(self, now: float) -> tuple[Late, str] | None:
        """The outcome and one sentence once a time-out has passed."""
        if now - self.started >= self.limit.total_seconds():
            return "timed_out", f"Stopped after {self.limit}."
        if not self.spoke:
            if self.first_output is not None and now - self.started >= self.first_output.total_seconds():
                return "stalled", f"Stopped: no answer within {self.first_output}."
        elif self.idle is not None and now - self.last >= self.idle.total_seconds():
            return "stalled", f"Stopped: silent for {self.idle}."
        return None
