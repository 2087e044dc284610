"""Ends the children of a runner that was killed.

A process of its own, started by the runner with a pipe: lines "+PGID" and "-PGID" tell which process groups live. When
the pipe closes, the runner is gone however it went, and what is left is ended: first SIGTERM, then SIGKILL. Without it,
kill -9 of a runner would leave its agents at work while another host does the same task again.
Run as a plain file (python -I -S), so that it imports next to nothing.
"""

import os
import signal
import sys
import time

GRACE = 2.0


def end(groups: set[int], number: int) -> None:
    for group in list(groups):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            groups.discard(group)
        except PermissionError:
            pass  # on macOS also said of a group of zombies


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    end(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        end(groups, 0)
    end(groups, signal.SIGKILL)


if __name__ == "__main__":
    main()
