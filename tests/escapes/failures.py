"""A host that cannot confine runs nothing, and says why. Case 40."""

import asyncio
import json
import subprocess
import sys
from typing import Any

from .arena import PATIENCE, Arena
from .findings import Findings, case

# A word of the cause, and one of the cure.
SAYS = {
    "bwrap": ("not installed", "apt install bubblewrap"),
    "namespaces": ("max_user_namespaces is 0", "sysctl"),
    "proc": ("/proc masked", "systempaths=unconfined"),
    "shim": ("", ""),
}


@case(40, "where no sandbox can be set up, nothing starts, and it is said why")
async def unusable(arena: Arena, findings: Findings) -> None:
    for what, (cause, cure) in SAYS.items():
        found = await _on_a_host_without(what, arena)
        said = found["said"] or ["", ""]
        findings.must(found["said"] is not None and not found["started"], f"{what}: a program started")
        findings.must(cause in said[0] and cure in said[1], f"{what}: it says {said}")
        findings.must(
            found["trouble"] is not None and cause in found["trouble"], f"{what}: the runner would claim tasks"
        )
    found = await _on_a_host_without("nothing", arena)
    findings.control("the same with nothing broken", found["started"] and found["trouble"] is None)


async def _on_a_host_without(what: str, arena: Arena) -> dict[str, Any]:
    world = arena.world()
    home = arena.folder(world.folder / "home")
    command = [sys.executable, "-m", "tests.escapes.broken", what, str(world.space), str(home)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=arena.environ, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-800:]
    return json.loads(done.stdout)
