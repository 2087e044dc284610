"""Claims for the adapter `openai`, and its child process run as the runner runs it."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from taskyard.runner.adapters import Exit, Run, Said, Seen
from taskyard.runner.adapters.openai import OpenAI
from taskyard.runner.verbs import Claim, Ending

NOTHING: dict[str, Any] = {field.name: None for field in fields(Claim)}
GIVEN: dict[str, Any] = {
    "attempt_id": 7,
    "task_id": 3,
    "number": 1,
    "prompt": "Is the sky blue?",
    "agent": "local",
    "scope": "default",
    "provider": "local",
    "account": "here:8080",
    "model": "coder",
    "adapter": "openai",
    "settings": {},
    "result_format": "text",
    "permissions": [],
    "timeout": timedelta(minutes=1),
    "lease_until": datetime(2026, 1, 1, tzinfo=UTC),
}
CLAIM = Claim(**{**NOTHING, **GIVEN})


def claim(
    base_url: str = "http://127.0.0.1:8080/v1", settings: Mapping[str, Any] | None = None, **changes: Any
) -> Claim:
    return replace(CLAIM, settings={"base_url": base_url, **(settings or {})}, **changes)


def run_of(claim: Claim, environ: Mapping[str, str] | None = None) -> Run:
    return Run(claim, Path("/"), Path("/nonexistent"), environ or {})


@dataclass
class Chat:
    """What a run printed, as the adapter read it, and how it ended."""

    seen: list[Seen]
    ending: Ending

    def said(self, kind: str) -> str:
        """All of that kind in the transcript."""
        return "".join(seen.body for seen in self.seen if isinstance(seen, Said) and seen.kind == kind)


class Running:
    """The child of an attempt under way."""

    def __init__(self, claim: Claim, environ: Mapping[str, str] | None = None) -> None:
        self._run = run_of(claim, environ)
        launch = OpenAI().prepare(self._run)
        self.process = subprocess.Popen(
            launch.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, **launch.env},
            cwd="/",
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(launch.stdin.decode())
        self.process.stdin.close()
        self.process.stdin = None

    def end(self, seconds: float = 30) -> Chat:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        reading = OpenAI().read(self._run)
        seen = [event for line in out.splitlines() for event in reading.line(line)]
        return Chat(seen, reading.ending(Exit(self.process.returncode, "", err)))


def chat(claim: Claim, environ: Mapping[str, str] | None = None) -> Chat:
    """Run it to its end."""
    return Running(claim, environ).end()
