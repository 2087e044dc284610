"""Runs cases in the situation that this process is in: whoever it is started as.

    python -m tests.escapes.worker '{"tools": {name: path}}'

Says first, as one line of JSON, who it is and whether the sandbox can be set up; then for each line `NUMBER` or
`NUMBER thorough` of standard input what came out, and for `start` what a jail costs. Ends with its input.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from taskyard.runner.sandbox.levels import examine

from .arena import PATIENCE, Arena, World
from .cases import every_case
from .endings import hold
from .findings import Findings

STARTS = 21
LONGEST = 4 * PATIENCE  # seconds that one case may take


async def tried(arena: Arena, number: int) -> dict[str, Any]:
    findings, begun = Findings(), time.monotonic()
    try:
        async with asyncio.timeout(LONGEST):
            await every_case()[number].run(arena, findings)
    except Exception as failed:
        findings.broken.append(f"{type(failed).__name__}: {failed}")
        traceback.print_exc()
    return {**findings.told(), "seconds": time.monotonic() - begun}


async def start(arena: Arena) -> float:
    """What a jail costs: from the claim to the end of `true`, in seconds; the median of several."""
    times: list[float] = []
    world = arena.world()
    for _ in range(STARTS):
        begun = time.perf_counter()
        await arena.inside(world, ["true"])
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def serve(arena: Arena) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line == ["start"]:
            print(json.dumps({"seconds": await start(arena)}), flush=True)
            continue
        arena.thorough = "thorough" in line
        print(json.dumps(await tried(arena, int(line[0]))), flush=True)


def main() -> None:
    config: dict[str, Any] = json.loads(sys.argv[1])
    confinement = examine("strict", os.environ)
    if "hold" in config:
        arena = Arena(confinement, root=Path(config["root"]))
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(hold(arena, World(Path(config["hold"]), config["told"]), config["jailed"]))
        return
    agent = confinement.account.name if confinement.account else None
    hello = {"uid": os.geteuid(), "agent": agent, "version": confinement.version, "trouble": confinement.trouble}
    print(json.dumps(hello), flush=True)
    if confinement.trouble is not None:
        return
    arena = Arena(confinement, tools=config["tools"])
    try:
        asyncio.run(serve(arena))
    finally:
        arena.close()


if __name__ == "__main__":
    main()
