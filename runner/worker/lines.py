"""From chunks of output to lines, with bounded memory."""

LONGEST = 8 << 20  # characters; a tool's result that holds a whole file is one line


class Lines:
    """Collects chunks; longer lines than LONGEST are left out and counted."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._skipping = False
        self.left_out = 0

    def add(self, chunk: str) -> list[str]:
        """The lines that this chunk completes, without their newlines."""
        first, *rest = chunk.split("\n")
        if not rest:
            self._hold(first)
            return []
        lines = [*self._taken(first), *rest[:-1]]
        self._hold(rest[-1])
        return [line.rstrip("\r") for line in lines]

    def end(self) -> list[str]:
        """What came after the last newline."""
        return [line for line in self._taken("") if line]

    def _hold(self, part: str) -> None:
        if self._skipping or self._size + len(part) > LONGEST:
            self._skipping = True
            self._parts.clear()
            self._size = 0
        elif part:
            self._parts.append(part)
            self._size += len(part)

    def _taken(self, part: str) -> list[str]:
        self._hold(part)
        lines = [] if self._skipping else ["".join(self._parts)]
        self.left_out += self._skipping
        self._parts.clear()
        self._size = 0
        self._skipping = False
        return lines
