"""Any command: an argument vector per agent, the prompt on standard input, text or one JSON document as the result."""

import json
import re
import signal
from pathlib import Path

from ..verbs import Claim, Ending
from .base import Adapter, CannotRun, Exit, Launch

RESULT_LIMIT = 1 << 20


class Command(Adapter):
    """Runs agents.command; exit status 0 is success."""

    name = "command"

    def prepare(self, claim: Claim, workspace: Path) -> Launch:
        """Fill {task_id}, {attempt}, {workspace} and {model} into the agent's command."""
        if not claim.command:
            raise CannotRun(f"Agent {claim.agent} has no command.")
        values = {
            "task_id": str(claim.task_id),
            "attempt": str(claim.number),
            "workspace": str(workspace),
            "model": claim.model or "",
        }
        # In one pass, and nothing else: a brace that means something to the command stays.
        argv = [
            re.sub(r"\{(task_id|attempt|workspace|model)\}", lambda m: values[m[1]], part) for part in claim.command
        ]
        return Launch(argv, claim.prompt.encode())

    def conclude(self, claim: Claim, ended: Exit) -> Ending:
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
        if claim.result_format == "json":
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
