"""A structured tool's output, line by line, into the adapter's reading and from there into the transcript."""

from collections.abc import Awaitable, Callable

from ..adapters import Reading, Said
from ..adapters.base import Seen
from .lines import Lines


class Hearing:
    """Feeds a reading line by line.

    `seen` passes on what it saw and tells whether the agent spoke; `give_up` is called once the reading is hopeless.
    """

    def __init__(self, reading: Reading, seen: Callable[[Seen], Awaitable[bool]], give_up: Callable[[], None]) -> None:
        self._reading = reading
        self._seen = seen
        self._give_up = give_up
        self._lines = Lines()

    async def hear(self, chunk: str) -> bool:
        """Returns whether the agent spoke."""
        return await self._read(self._lines.add(chunk))

    async def end(self) -> None:
        """No more output will come."""
        await self._read(self._lines.end())
        if self._lines.left_out:
            await self._seen(Said("note", f"{self._lines.left_out} lines were too long to read"))

    async def _read(self, lines: list[str]) -> bool:
        spoke = False
        for line in lines:
            for seen in self._reading.line(line):
                spoke |= await self._seen(seen)
            if self._reading.hopeless:
                self._give_up()
        return spoke
