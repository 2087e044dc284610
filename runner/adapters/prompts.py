"""The words that an agent gets: the task's prompt, and what became of the attempt before."""

from ..verbs import Claim

CONTINUE = "Go on with the task. Look first at what is done already."


def message(claim: Claim) -> str:
    """What goes to the tool's standard input.

    A resumed session knows its prompt: it gets the note and goes on. A new one gets the prompt, and the note below it.
    """
    if claim.session_id is not None:
        return f"{claim.note}\n\n{CONTINUE}" if claim.note else CONTINUE
    return f"{claim.prompt}\n\n---\n{claim.note}" if claim.note else claim.prompt
