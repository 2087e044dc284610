"""Recordings of real runs of the vendors' tools, and the claims and runs that tests of adapters need.

tests/recordings/<tool>/<case>/ holds what a run printed (`stdout`, `stderr`), its exit status (`exitcode`, negative for a
signal) and `expect.json`: {"outcome", "window"?: {"name", "model"?, "used_percent"?}, "resets_at"?, "usage"?: what is known
of it, "result"?, "reason": what happened, "claim"?: fields of the claim that the reading needs}. What a case leaves out must
be absent from the ending too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from taskyard.runner.adapters import Adapter, Exit, Reading, Run, Seen
from taskyard.runner.verbs import Claim, Ending

FOLDER = Path(__file__).parent / "recordings"
EVERYTHING = ["read", "write", "execute", "network"]


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of a tool, and what its ending must be."""

    tool: str
    case: str
    stdout: str
    stderr: str
    code: int
    expect: Mapping[str, Any]

    @property
    def exit(self) -> Exit:
        return Exit(self.code, self.stdout, self.stderr)

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    def run(self, home: Path) -> Run:
        return a_run(home, **self.expect.get("claim", {}))


def recordings(tool: str) -> list[Recording]:
    """All of a tool, in the order of their names."""
    return [_load(folder) for folder in sorted((FOLDER / tool).iterdir())]


def _load(folder: Path) -> Recording:
    read = {name: (folder / name).read_text() for name in ("stdout", "stderr", "exitcode", "expect.json")}
    expect = json.loads(read["expect.json"])
    return Recording(folder.parent.name, folder.name, read["stdout"], read["stderr"], int(read["exitcode"]), expect)


def replay(reading: Reading, lines: list[str], ended: Exit) -> tuple[list[Seen], Ending]:
    """Feed the lines as the runner does: what was seen, and the ending."""
    seen = [event for line in lines for event in reading.line(line)]
    return seen, reading.ending(ended)


def assert_as_expected(ending: Ending, expect: Mapping[str, Any]) -> None:
    """The ending is the expected one, in every field that expect.json knows of."""
    window = None
    if "window" in expect:
        at = expect.get("resets_at")
        window = {**expect["window"], **({"resets_at": datetime.fromisoformat(at)} if at else {})}
    found = ending.window
    told = {n: v for n in ("name", "resets_at", "used_percent", "model") if (v := getattr(found, n, None)) is not None}
    assert {
        "outcome": ending.outcome,
        "result": ending.result,
        "usage": ending.usage.known() if ending.usage else None,
        "window": told if found else None,
    } == {
        "outcome": expect["outcome"],
        "result": expect.get("result"),
        "usage": expect.get("usage"),
        "window": window,
    }


def a_claim(**changes: Any) -> Claim:
    """A claim of an agent that may do everything, with these fields changed."""
    claim = Claim(
        attempt_id=7,
        task_id=3,
        number=1,
        prompt="Sweep the yard.",
        payload=None,
        agent="sweeper",
        scope="default",
        provider="provider",
        account="account",
        model=None,
        adapter="adapter",
        settings={},
        command=None,
        result_format="text",
        system_prompt=None,
        tools=None,
        max_turns=None,
        output_schema=None,
        permissions=EVERYTHING,
        workspace=None,
        verify=None,
        timeout=timedelta(hours=1),
        first_output_timeout=None,
        idle_timeout=None,
        session_id=None,
        session_usage=None,
        note=None,
        lease_until=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return replace(claim, **changes)


def a_run(home: Path, environ: Mapping[str, str] | None = None, **changes: Any) -> Run:
    """A run of such a claim in folders below `home`, with nothing in the runner's environment but `environ`."""
    workspace, private = home / "workspace", home / "home"
    workspace.mkdir(parents=True, exist_ok=True)
    private.mkdir(exist_ok=True)
    return Run(a_claim(**changes), workspace, private, environ or {})


def a_tool(folder: Path, name: str, prints: str = "1.2.3") -> dict[str, str]:
    """Put a tool of that name into a folder; returns an environment whose PATH is that folder. It prints its version."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / name
    script.write_text(f"#!/bin/sh\necho '{prints}'\n")
    script.chmod(0o755)
    return {"PATH": str(folder)}


def read_all(adapter: Adapter, recording: Recording, home: Path) -> tuple[list[Seen], Ending]:
    """Replay a recording with a fresh reading of this adapter."""
    return replay(adapter.read(recording.run(home)), recording.lines, recording.exit)
