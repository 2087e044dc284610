"""The tools of the channel: what an agent may ask of the yard. Each call is checked in SQL against its attempt."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import psycopg

from .. import agent_verbs, verbs

log = logging.getLogger("taskyard.runner")

Call = Callable[..., Awaitable[Any]]  # Link.call
Pause = Literal["wait", "handoff"]
Arguments = Mapping[str, Any]

DAY = 24 * 60  # minutes
LARGEST_ANSWER = 200_000  # characters; an agent's context is what an answer costs
TURN = "End your turn now, without further tool calls: "
NOW = {
    "wait": TURN + "this task gives its slot up and your session is resumed with what comes.",
    "handoff": TURN + "the other agent goes on when you have.",
}
OVER = "This attempt is over: stop now, nothing that you do is kept."


class Refused(Exception):
    """The call was not carried out; the message tells the agent why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """`schema` is the JSON schema of the arguments."""

    name: str
    description: str
    schema: dict[str, Any]


def _tool(name: str, description: str, required: tuple[str, ...] = (), /, **properties: dict[str, Any]) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return Tool(name, description, schema)


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}


def _numbers(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "integer"}, "description": description}


TOOLS = (
    _tool(
        "spawn_task",
        "Create a child task for another agent; returns its number at once. It runs when there is room; use wait_for to"
        " get its result. The same prompt for the same agent again gives the child that is there already.",
        ("prompt",),
        prompt=_text("What is to be done; the other agent knows nothing else of your work."),
        agent=_text("Which agent: claude, codex, gemini, ...; the yard chooses where this is left out."),
        scope=_text("Your own scope or one below it."),
        priority=_number("Higher runs first; your own task's where this is left out."),
        payload={"description": "Any JSON value that is handed to the agent."},
        depends_on=_numbers("Tasks that have to complete first."),
        workspace=_text("Directory to work in; a directory of its own where this is left out."),
        repository=_text("Git repository to work on in a branch of its own, instead of a workspace."),
        base=_text("Branch of the repository to start from."),
        verify=_text("Command that has to succeed before the child counts as completed."),
        requires=_texts("Labels that the host must have."),
        provider=_text("Only this provider."),
        model=_text("Only this model."),
        max_attempts=_number("Attempts before it fails for good."),
        timeout=_text('Wall clock of one attempt, like "10 minutes".'),
        output_schema={"type": "object", "description": "JSON schema that the result has to fit."},
    ),
    _tool(
        "wait_for",
        "Wait until tasks have ended, or mail has come. Where they have ended already the results come at once;"
        " otherwise end your turn after this call, and your session is resumed with the results.",
        tasks=_numbers("The tasks, your children for example."),
        mail={"type": "boolean", "description": "Also go on when mail comes; alone: wait for mail."},
        within_minutes=_number("Go on after so many minutes whatever came; a day where this is left out."),
    ),
    _tool("read_result", "What became of a task, its result whole.", ("task",), task=_number("Its number.")),
    _tool(
        "save_checkpoint",
        "Save your state, so that you or a successor can go on from here after an interruption.",
        ("status", "progress"),
        status=_text("Where you are, in a sentence."),
        progress={"type": "number", "minimum": 0, "maximum": 1, "description": "How far you are, from 0 to 1."},
        data={"type": "object", "description": "What is needed to go on."},
        conversation={"type": "array", "description": "What was said, as far as it is needed."},
    ),
    _tool("load_checkpoint", "The last state that was saved for this task, by you or a predecessor; null: none."),
    _tool(
        "handoff",
        "Have another agent go on with this task in your place, in the same files. End your turn after this call.",
        ("target", "reason"),
        target=_text("The agent who is to go on."),
        reason={"type": "string", "enum": ["specialization", "timeout", "escalation", "limit"]},
        context_summary=_text("What was done and found; summed up for you where this is left out."),
        pending_actions=_texts("What is left to do."),
        artifacts=_texts("Paths of artifacts to look at."),
    ),
    _tool(
        "request_permission",
        "Ask a human for more than this task may do. End your turn after this call; your session is resumed with the"
        " decision.",
        permissions=_texts("Of read, write, execute, network."),
        paths=_texts("Directories that you need to see."),
        hosts=_texts("Hosts that you need to reach."),
        why=_text("What you need it for."),
        within_minutes=_number("Silence means no after so many minutes; a day where this is left out."),
    ),
    _tool(
        "ask_human",
        "Ask a human something. End your turn after this call; your session is resumed with the answer.",
        ("question",),
        question=_text("The question."),
        within_minutes=_number("Go on without an answer after so many minutes; a day where this is left out."),
    ),
    _tool(
        "send_message",
        "Send a message to the agent of another task; it is read at its next tool call or turn.",
        ("task", "text"),
        task=_number("The task's number."),
        text=_text("The message."),
    ),
    _tool("read_messages", "Messages for this task from humans and other agents that you have not read yet."),
    _tool(
        "report_progress",
        "Tell whoever watches how far you are.",
        progress={"type": "number", "minimum": 0, "maximum": 1, "description": "From 0 to 1."},
        doing=_text("What you are doing, in a few words."),
    ),
    _tool(
        "list_artifacts",
        "Files that a task left, short texts with their content.",
        task=_number("The task's number; your own where this is left out."),
    ),
    _tool(
        "add_artifact",
        "Keep a file for whoever reads your result.",
        ("path",),
        path=_text("The file, relative to your working directory."),
        name=_text("What it is called there; its path where this is left out."),
    ),
)
NAMES = frozenset(tool.name for tool in TOOLS)


class Channel:
    """The tools of one attempt.

    `call` carries a verb out (Link.call). `read` returns a file of the child's working directory, given its relative
    path; it raises Refused. `pause` is told that the agent is to end its turn, with None that it need not any more: it
    asked again, and what it waited for was there. `saved` runs after each checkpoint, with its status.
    """

    def __init__(
        self,
        attempt: int,
        call: Call,
        read: Callable[[str], Awaitable[tuple[int, str, bytes | None]]],
        pause: Callable[[Pause | None], None],
        saved: Callable[[str], Awaitable[None]],
    ) -> None:
        self._attempt = attempt
        self._call = call
        self._read = read
        self._pause = pause
        self._saved = saved
        self._asked = False  # a human, or another agent to go on: no result makes up for that
        self.mail = False  # something waits in the mailbox: it goes along with the next answer

    async def answer(self, tool: str, arguments: Arguments) -> tuple[str, bool]:
        """What a call gets: JSON, or why it was refused; and whether it was carried out."""
        try:
            given = await self._carry_out(tool, _Given(arguments))
            if self.mail and tool != "read_messages" and (mail := await self._mail()):
                given["mail"] = mail
        except Refused as refused:
            return str(refused), False
        except psycopg.Error as error:
            if verbs.is_lost(error):
                return OVER, False
            if not verbs.is_refusal(error):
                log.warning("a call of %s failed: %s", tool, error)
                return "The yard could not carry that out.", False
            return " ".join(filter(None, (error.diag.message_primary, error.diag.message_hint))), False
        text = json.dumps(given, ensure_ascii=False)
        if len(text) > LARGEST_ANSWER:
            text = text[:LARGEST_ANSWER] + "... (cut)"
        return text, True

    async def _mail(self) -> list[dict[str, Any]]:
        self.mail = False
        return await self._call(agent_verbs.read_messages, self._attempt)

    async def _carry_out(self, tool: str, given: "_Given") -> dict[str, Any]:
        call, attempt = self._call, self._attempt
        match tool:
            case "spawn_task":
                answer = await call(agent_verbs.spawn_task, attempt, dict(given.all))
            case "wait_for":
                answer = await call(
                    agent_verbs.wait_for,
                    attempt,
                    given.numbers("tasks"),
                    given.flag("mail"),
                    given.minutes("within_minutes"),
                )
                if answer["waiting"]:
                    answer["now"] = NOW["wait"]
                    self._pause("wait")
                elif not self._asked:
                    self._pause(None)
            case "read_result":
                answer = await call(agent_verbs.read_result, attempt, given.number("task"))
            case "save_checkpoint":
                version = await call(agent_verbs.save_checkpoint, attempt, dict(given.all))
                await self._saved(given.text("status") or "")
                answer = {"version": version}
            case "load_checkpoint":
                found = await call(agent_verbs.load_checkpoint, attempt)
                answer = {"checkpoint": found and {k: v for k, v in found.items() if k != "attempt"}}
            case "handoff":
                number = await call(agent_verbs.handoff_task, attempt, dict(given.all))
                self._end_turn("handoff")
                answer = {"handoff": number, "now": NOW["handoff"]}
            case "request_permission":
                number = await call(
                    agent_verbs.request_permission,
                    attempt,
                    given.texts("permissions"),
                    given.texts("paths"),
                    given.texts("hosts"),
                    given.text("why"),
                    given.minutes("within_minutes"),
                )
                self._end_turn("wait")
                answer = {"approval": number, "now": NOW["wait"]}
            case "ask_human":
                number = await call(
                    agent_verbs.ask_human, attempt, given.text("question") or "", given.minutes("within_minutes")
                )
                self._end_turn("wait")
                answer = {"approval": number, "now": NOW["wait"]}
            case "send_message":
                number = await call(agent_verbs.send_message, attempt, given.number("task"), given.text("text") or "")
                answer = {"message": number}
            case "read_messages":
                answer = {"messages": await self._mail()}
            case "report_progress":
                await call(agent_verbs.report_progress, attempt, given.share("progress"), given.text("doing"))
                answer = {"noted": True}
            case "list_artifacts":
                task = given.number("task") if "task" in given.all else None
                found = await call(agent_verbs.list_artifacts, attempt, task)
                answer = {"artifacts": [{k: v for k, v in one.items() if k != "attempt"} for one in found]}
            case "add_artifact":
                answer = await self._add(given)
            case _:
                raise Refused(f"There is no tool {tool}. There are: {', '.join(sorted(NAMES))}.")
        return answer

    def _end_turn(self, kind: Pause) -> None:
        self._asked = True
        self._pause(kind)

    async def _add(self, given: "_Given") -> dict[str, Any]:
        path = given.text("path") or ""
        size, sha256, content = await self._read(path)
        name = given.text("name") or path
        await self._call(verbs.add_artifact, self._attempt, name, size, sha256, content)
        return {"artifact": name, "size": size, "sha256": sha256}


class _Given:
    """Arguments as JSON brought them; each reader raises Refused for what is of another kind."""

    def __init__(self, given: Arguments) -> None:
        self.all = {name: value for name, value in given.items() if value is not None}

    def _of(self, name: str, kind: type | tuple[type, ...], told: str) -> Any:
        value = self.all.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
            raise Refused(f"{name} is {told}.")
        return value

    def text(self, name: str) -> str | None:
        return self._of(name, str, "a text")

    def flag(self, name: str) -> bool:
        return self._of(name, bool, "true or false") or False

    def share(self, name: str) -> float | None:
        return self._of(name, (int, float), "a number from 0 to 1")

    def number(self, name: str) -> int:
        found = self._of(name, int, "a whole number")
        if found is None or not 0 < found < 2**63:
            raise Refused(f"{name} is the number of a task.")
        return found

    def numbers(self, name: str) -> list[int]:
        found: list[Any] = self._of(name, list, "a list of numbers") or []
        if not all(isinstance(one, int) and not isinstance(one, bool) and 0 < one < 2**63 for one in found):
            raise Refused(f"{name} is a list of numbers.")
        return found

    def texts(self, name: str) -> list[str]:
        found: list[Any] = self._of(name, list, "a list of texts") or []
        if not all(isinstance(one, str) for one in found):
            raise Refused(f"{name} is a list of texts.")
        return found

    def minutes(self, name: str) -> timedelta:
        found = self._of(name, (int, float), "a number of minutes")
        if found is not None and not 0 < found <= 30 * DAY:
            raise Refused(f"{name} is a number of minutes, 30 days at most.")
        return timedelta(minutes=DAY if found is None else found)
