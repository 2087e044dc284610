"""What a person does, one function for each verb. All raise Away and Refused, and return what the database says."""

from taskyard.runner.actions import Submission, submission_call

from .link import Link


async def submit(link: Link, submission: Submission) -> int:
    """Insert a task; returns its id."""
    query, values = submission_call(submission)
    return (await link.all(query, *values))[0]["id"]


async def rehearse(link: Link, submission: Submission) -> None:
    """Find out whether a task would be taken: Refused says why it would not."""
    query, values = submission_call(submission)
    await link.rehearse(query, *values)


async def cancel(link: Link, task: int) -> str:
    """Cancel a task with its children."""
    return await link.value("select taskyard.cancel_task(%s, 'cancelled')", task)


async def retry(link: Link, task: int) -> str:
    """Give a task all its attempts again."""
    return await link.value("select taskyard.retry_task(%s)", task)


async def say(link: Link, task: int, text: str) -> str:
    """Write to a task's agent."""
    return await link.value("select taskyard.say(%s, %s)", task, text)


async def prioritise(link: Link, task: int, priority: int) -> str:
    """Give a task another priority."""
    await link.all("update taskyard.tasks set priority = %s where id = %s", priority, task)
    return f"Task {task} has priority {priority}."


async def pause(link: Link, kind: str, name: str, why: str | None) -> str:
    """Pause a scope or a provider."""
    if kind == "scope":
        return await link.value("select taskyard.pause_scope(%s, %s)", name, why)
    return await link.value("select taskyard.pause_provider(%s, %s)", name, why)


async def resume(link: Link, kind: str, name: str) -> str:
    """Undo pause()."""
    if kind == "scope":
        return await link.value("select taskyard.resume_scope(%s)", name)
    return await link.value("select taskyard.resume_provider(%s)", name)


async def drain(link: Link, runner: str, draining: bool) -> str:
    """Stop a runner from claiming, or let it claim again."""
    return await link.value("select taskyard.drain_runner(%s, %s)", runner, draining)


async def approve(link: Link, question: int) -> str:
    """Allow what was asked for."""
    return await link.value("select taskyard.approve(%s)", question)


async def deny(link: Link, question: int, why: str | None) -> str:
    """Refuse what was asked for."""
    return await link.value("select taskyard.deny(%s, %s)", question, why)


async def answer(link: Link, question: int, text: str) -> str:
    """Answer a question."""
    return await link.value("select taskyard.answer(%s, %s)", question, text)
