"""Processes that left their attempt's group: agents start their tools in sessions of their own.

Every child carries its attempt in TASKYARD_RUN, which its own children inherit; what still carries it after the end is
killed, whoever its parent is by then.
"""

import contextlib

import psutil

MARK = "TASKYARD_RUN"


def end_strays(mark: str) -> int:
    """Kill what still carries the mark; returns how many that were. Takes some 10 ms: call it in a thread."""
    ended = 0
    for _ in range(20):  # they may be starting others
        found = _marked(mark)
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
                ended += 1
        psutil.wait_procs(found, timeout=1)
    return ended


def _marked(mark: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        # Those of others cannot be read, and are none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
