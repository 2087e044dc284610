"""What the log tells of an attempt: a sentence for a person, and the same as fields for a log in JSON."""

import logging

import psycopg

from ..verbs import Claim, Ending

log = logging.getLogger("taskyard.runner")


def started(claim: Claim) -> None:
    """It begins."""
    log.info("task %s: attempt %s starts (%s)", claim.task_id, claim.number, _who(claim), extra=_fields(claim))


def lost(claim: Claim) -> None:
    """Somebody else has its task, or it ended."""
    told = (claim.task_id, claim.number)
    log.warning("task %s: attempt %s is lost; its work was stopped", *told, extra=_fields(claim))


def ended(claim: Claim, ending: Ending, status: str) -> None:
    """It was reported; `status` is what became of the task."""
    why = f" ({ending.error})" if ending.error and ending.outcome != "cancelled" else ""
    told = (claim.task_id, claim.number, ending.outcome, status, why)
    fields = {**_fields(claim), "outcome": ending.outcome, "status": status}
    log.info("task %s: attempt %s %s, the task is %s%s", *told, extra=fields)


def refused(claim: Claim, error: psycopg.Error) -> None:
    """Something that it reported on the way was not taken; its work goes on."""
    log.warning("task %s: a report was refused: %s", claim.task_id, error, extra=_fields(claim))


def _fields(claim: Claim) -> dict[str, object]:
    return {
        "task": claim.task_id,
        "attempt": claim.attempt_id,
        "number": claim.number,
        "agent": claim.agent,
        "provider": claim.provider,
    }


def _who(claim: Claim) -> str:
    return claim.agent if claim.provider in (claim.agent, "command") else f"{claim.agent} by {claim.provider}"
