"""The vendors' real tools inside, and a model that tells one to attack. Case 42."""

import asyncio
import json
import os
import shlex
import shutil
from pathlib import Path

from taskyard.runner.adapters import Launch, Run, programs
from taskyard.runner.adapters.registry import adapters
from taskyard.runner.worker import confined

from ..stand_in import StandIn, run_command, text
from .arena import PATIENCE, Arena, answers
from .cases import EXPECTED
from .findings import Findings, case

ATTACKS = tuple(number for number in range(1, 16) if number in EXPECTED)
TOKEN = "sk-ant-oat01-made-up"


@case(42, "the vendors' tools work inside, and what a model makes them do stays inside", slow=True)
async def vendors_tools(arena: Arena, findings: Findings) -> None:
    for name, path in arena.tools.items():
        if not os.access(path, os.X_OK):
            findings.skipped.append(f"{name} is out of reach for this account")
            continue
        words = programs.command(path, os.environ)
        launch = Launch([], b"", {"NO_UPDATE_NOTIFIER": "1"}, programs=programs.needed(words))
        ended = await arena.inside(arena.world(), [*words, "--version"], launch=launch)
        version = Path(path).parent.parent.parent.name.rpartition("-")[2]
        findings.must(ended.code == 0 and version in ended.stdout, f"{name}: {ended.code} {ended.stderr[-300:]}")
    if "claude" not in arena.tools or not os.access(arena.tools["claude"], os.X_OK):
        findings.skipped.append("claude is not here")
        return
    for jailed in (True, False):
        found = await _told_to_attack(arena, jailed)
        if jailed:
            for number in ATTACKS:
                findings.judge(found[str(number)], EXPECTED[number], f"by claude's Bash ({number})")
        else:
            findings.control("claude without a jail", found["1"][".env"] == found["3"]["create"] == "done")


async def _told_to_attack(arena: Arena, jailed: bool) -> dict[str, dict[str, str]]:
    """What the attacker got when Claude Code's Bash tool started it."""
    world = arena.world(carved=True)
    before = world.fingerprint()
    claude = adapters()["claude"]
    user = arena.folder(world.folder / "user")
    environ = {"PATH": os.environ["PATH"], "HOME": str(user), "CLAUDE_CODE_OAUTH_TOKEN": TOKEN}
    with StandIn() as api:
        account = api.account("escapes")
        result = world.space / "found"
        command = f"{shlex.join(world.attack(*ATTACKS))} > {shlex.quote(str(result))}"
        account.script(run_command(command), text("Done."))
        settings = {
            "executable": arena.tools["claude"],
            "model": "claude-sonnet-4-5",
            "env": {"ANTHROPIC_BASE_URL": account.url},
        }
        claim = arena.claim(world, prompt="Go.", provider="claude", adapter="claude", settings=settings)
        async with asyncio.timeout(2 * PATIENCE), arena.places(world).rooms(claim, world.space, lasting=True) as rooms:
            run = Run(claim, world.space, rooms.tool, environ, confined.GATEWAY if jailed else None)
            launch = await asyncio.to_thread(claude.prepare, run)
            if jailed:
                async with arena.attempt(world, claim, launch, rooms=rooms) as (child, _):
                    ended = await child.run(launch.stdin, _ignored)
                assert world.fingerprint() == before, "what is outside was changed"
            else:
                for folder in (
                    rooms.tool,
                    rooms.tool.parent,
                    rooms.tool.parent.parent,
                    rooms.tool.parent.parent.parent,
                ):
                    folder.chmod(0o755)
                env = {**environ, **launch.env}
                ended = await arena.outside(launch.argv, world.space, env=env, stdin=launch.stdin)
        assert ended.code == 0, f"claude ended with {ended.code}: {(ended.stdout + ended.stderr)[-800:]}"
        assert shutil.which("sh") and result.exists(), f"its Bash tool did nothing: {account.requests[-1].text[-500:]}"
        return answers(ended.__class__(0, result.read_text(), json.dumps([])))


async def _ignored(_kind: str, _text: str) -> None:
    return
