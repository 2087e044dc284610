"""The time that an agent gets to end its turn, once the channel told it to."""

import asyncio
import time
from collections.abc import Callable

from ..channel.tools import Pause

GRACE = 15.0  # seconds


class Patience:
    """`over` is called when the agent has not ended its turn within GRACE."""

    def __init__(self, over: Callable[[Pause], None]) -> None:
        self._over = over
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.asked: Pause | None = None

    @property
    def lasts(self) -> bool:
        """Whether the agent may still end its turn by itself."""
        return time.monotonic() < self._until

    def begin(self, kind: Pause | None) -> None:
        """The agent was told to end its turn; None: that it need not any more."""
        self.end()
        self.asked = kind
        if kind is not None:
            self._until = time.monotonic() + GRACE
            self._timer = asyncio.get_running_loop().call_later(GRACE, self._lost, kind)

    def end(self) -> None:
        """The agent has ended, or is not waited for any more."""
        self._until = 0.0
        if self._timer is not None:
            self._timer.cancel()

    def _lost(self, kind: Pause) -> None:
        self._until = 0.0
        self._over(kind)
