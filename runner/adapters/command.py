"""Any command: an argument vector per agent, the prompt on standard input, text or one JSON document as the result."""

import json
import re
import signal
from collections.abc import Mapping
from typing import Any

from ..verbs import Claim, Ending
from . import programs
from .base import Adapter, BadSettings, CannotRun, Exit, Launch, Offer, Reading, Run, Seen

RESULT_LIMIT = 1 << 20


class Command(Adapter):
    """Runs agents.command; exit status 0 is success."""

    name = "command"
    structured = False

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        """Every host has it; there is nothing to set."""
        if settings:
            raise BadSettings(f"The adapter command has no setting {min(settings)}.")
        return Offer("ready")

    def prepare(self, run: Run) -> Launch:
        """Fill {task_id}, {attempt}, {workspace} and {model} into the agent's command."""
        claim = run.claim
        if not claim.command:
            raise CannotRun(f"Agent {claim.agent} has no command.")
        values = {
            "task_id": str(claim.task_id),
            "attempt": str(claim.number),
            "workspace": str(run.workspace),
            "model": claim.model or "",
        }
        # In one pass, and nothing else: a brace that means something to the command stays.
        argv = [
            re.sub(r"\{(task_id|attempt|workspace|model)\}", lambda m: values[m[1]], part) for part in claim.command
        ]
        if run.gateway is None:
            return Launch(argv, claim.prompt.encode())
        words, needed = programs.find(argv[0], run)
        return Launch([*words, *argv[1:]], claim.prompt.encode(), programs=needed)

    def read(self, run: Run) -> Reading:
        """Its output is the transcript; only the end is read."""
        return _Output(run.claim)


class _Output(Reading):
    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def line(self, text: str) -> list[Seen]:
        return []

    def ending(self, ended: Exit) -> Ending:
        """Exit status 0: completed. A signal: crashed. Anything else: failed, with the last words of standard error."""
        if ended.code < 0:
            name = signal.Signals(-ended.code).name if -ended.code in signal.valid_signals() else str(-ended.code)
            return Ending(
                "crashed",
                error=f"The command was ended by {name}.",
                exit_code=ended.code,
                evidence=ended.stderr[-2000:],
            )
        text = ended.stdout[-RESULT_LIMIT:].strip("\n")
        if ended.code != 0:
            said = (ended.stderr.strip() or text.strip()).split("\n")[-1][:500]
            error = f"Exit status {ended.code}" + (f": {said}" if said else ".")
            return Ending("failed", text or None, error, ended.code, ended.stderr[-2000:] or None)
        if self._claim.result_format == "json":
            return _json_result(ended)
        return Ending("completed", text, exit_code=0)


def _json_result(ended: Exit) -> Ending:
    if ended.stdout_cut:
        return Ending("failed", error="The JSON result is larger than 4 MB.", exit_code=0)
    try:
        document = json.loads(ended.stdout)
    except ValueError as error:
        return Ending(
            "failed",
            error=f"The command did not print one JSON document: {error}.",
            exit_code=0,
            evidence=ended.stdout[-2000:],
        )
    return Ending("completed", document, exit_code=0)
