"""Ends the children of a runner that was killed.

A process of its own, started by the runner with a pipe: lines "+PGID MARK" and "-PGID" tell which process groups live.
When the pipe closes, the runner is gone however it went, and what is left is ended: first SIGTERM, then SIGKILL.
Without it, kill -9 of a runner would leave its agents at work while another host does the same task again.
MARK is what the group's processes carry in TASKYARD_RUN: on Linux those that left the group are found by it.
Run as a plain file (python -I -S), so that it imports next to nothing.
"""

import os
import signal
import sys
import time

GRACE = 2.0


def end(groups: dict[int, str], number: int) -> None:
    for group in list(groups):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            del groups[group]
        except PermissionError:
            pass  # on macOS also said of a group of zombies


def end_strays(marks: set[str]) -> None:
    wanted = {f"TASKYARD_RUN={mark}".encode() for mark in marks}
    for entry in os.listdir("/proc") if wanted and os.path.isdir("/proc") else ():
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if wanted.intersection(file.read().split(b"\0")):
                        os.kill(int(entry), signal.SIGKILL)
            except OSError:
                pass  # somebody else's, or gone


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin:
        group, _, mark = line[1:].strip().partition(" ")
        if line[0] == "+":
            groups[int(group)] = mark
        else:
            groups.pop(int(group), None)
    marks = set(groups.values()) - {""}
    end(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        end(groups, 0)
    end(groups, signal.SIGKILL)
    end_strays(marks)


if __name__ == "__main__":
    main()
