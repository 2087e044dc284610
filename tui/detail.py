"""One task: its transcript as it grows, and all that it left."""

import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.validation import Integer
from textual.widgets import Footer, Static, TabbedContent, TabPane

from .pane import yard_of
from .store import actions, detail
from .store.models import Attempt, Change, Detail, Handoff
from .widgets.ask import Ask, Confirm
from .widgets.transcript import TranscriptView, joined
from .words import SIGNS, ago, clean, count, money

TAIL = 300  # transcript rows that are shown first

Draw = Callable[[Detail], RenderableType]


class DetailScreen(Screen[None]):
    """The tabs of one task."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "Back"),
        Binding("s", "say", "Say"),
        Binding("c", "cancel", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("p", "prioritise", "Priority"),
        Binding("a", "approve", "Approve", show=False),
        Binding("n", "again", "New like this", show=False),
        Binding("left,h", "tab(-1)", "Tab", show=False),
        Binding("right,l", "tab(1)", "Tab", show=False),
    ]

    DEFAULT_CSS = """
    DetailScreen #head { height: auto; max-height: 30%; padding: 0 1; background: $boost; }
    DetailScreen TabbedContent { height: 1fr; }
    DetailScreen TabPane { padding: 0; }
    DetailScreen VerticalScroll > Static { height: auto; padding: 0 1; }
    """

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task_id = task
        self.shown: Detail | None = None
        self._attempt: int | None = None
        self._diff: tuple[object, str | None] = (None, None)

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        with TabbedContent():
            with TabPane("Transcript", id="tab-transcript"):
                yield TranscriptView(id="transcript")
            for name in DRAWN:
                with TabPane(name, id=f"tab-{name.lower()}"), VerticalScroll():
                    yield Static(id=f"body-{name.lower()}", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    async def update(self, change: Change | None) -> None:
        if self.shown is not None and change is not None and change.ids and self.task_id not in change.ids:
            change = None
        running = self.shown is not None and self.shown.status == "running"
        if self.shown is None or change is not None or running:
            found = await detail.detail(yard_of(self).link, self.task_id)
            if found is None:
                self.query_one("#head", Static).update(Text(f"There is no task {self.task_id}."))
                return
            self.shown = found
            await self._show(found)
        await self._follow()

    async def _show(self, found: Detail) -> None:
        self.query_one("#head", Static).update(_head(found))
        diff = next((left for left in reversed(found.artifacts) if left.kind == "diff"), None)
        if diff is not None and self._diff[0] != diff:
            self._diff = (diff, await detail.content(yard_of(self).link, diff))
        for name, draw in DRAWN.items():
            drawn = draw_diff(self._diff[1]) if name == "Diff" else draw(found)
            self.query_one(f"#body-{name.lower()}", Static).update(drawn)
        self.refresh_bindings()

    async def _follow(self) -> None:
        found = self.shown
        if found is None or not found.attempts:
            return
        view, attempt = self.query_one(TranscriptView), found.attempts[-1]
        if attempt.id != self._attempt:
            self._attempt = attempt.id
            view.forget()
            view.last = await detail.before_tail(yard_of(self).link, attempt.id, TAIL)
        for _ in range(4):
            entries = await detail.transcript(yard_of(self).link, attempt.id, view.last)
            await view.add(joined(entries))
            if len(entries) < detail.PAGE:
                break

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        needs = {"say", "cancel", "retry", "prioritise", "approve", "again"}
        if action not in needs:
            return True
        found = self.shown
        if found is None or not yard_of(self).link.rights.submit:
            return None
        over = found.status in ("completed", "failed", "cancelled")
        possible = {
            "say": not over,
            "cancel": not over,
            "retry": found.status in ("failed", "cancelled"),
            "prioritise": not over,
            "approve": any(q.kind == "permission" for q in found.questions),
            "again": True,
        }
        return True if possible[action] else None

    def action_back(self) -> None:
        yard_of(self).pop_screen()

    def action_tab(self, step: int) -> None:
        tabs = self.query_one(TabbedContent)
        names = [pane.id or "" for pane in tabs.query(TabPane)]
        tabs.active = names[(names.index(tabs.active) + step) % len(names)]

    def action_say(self) -> None:
        task = self.task_id
        ask = Ask("Say", "What its agent should know. It reads this with its next step.")
        yard_of(self).ask(ask, lambda text: yard_of(self).do(lambda link: actions.say(link, task, text)))

    def action_cancel(self) -> None:
        task = self.task_id
        yard_of(self).confirm(
            Confirm(f"Cancel task {task} with its children?"),
            lambda: yard_of(self).do(lambda link: actions.cancel(link, task)),
        )

    def action_retry(self) -> None:
        task = self.task_id
        yard_of(self).do(lambda link: actions.retry(link, task))

    def action_prioritise(self) -> None:
        assert self.shown is not None
        task = self.task_id
        ask = Ask(
            "Priority",
            "Higher runs first; -1000 to 1000.",
            value=str(self.shown.columns["priority"]),
            validator=Integer(-1000, 1000),
        )
        yard_of(self).ask(ask, lambda text: yard_of(self).do(lambda link: actions.prioritise(link, task, int(text))))

    def action_approve(self) -> None:
        assert self.shown is not None
        question = next(q for q in self.shown.questions if q.kind == "permission")
        yard_of(self).do(lambda link: actions.approve(link, question.id))

    def action_again(self) -> None:
        assert self.shown is not None
        yard_of(self).new_task(self.shown.columns)


def _head(found: Detail) -> RenderableType:
    columns = found.columns
    sign, style = SIGNS[found.status]
    first = Text.assemble(
        (f"{sign} {found.status}", style or "bold"),
        f"  task {found.id}  {columns['agent']}  ",
        (columns["scope"], "dim"),
    )
    prompt = Text(clean(columns["prompt"]).strip(), overflow="ellipsis")
    prompt.truncate(400, overflow="ellipsis")
    lines: list[RenderableType] = [first, prompt]
    lines += [
        Text(clean(text), style="yellow" if found.status != "completed" else "dim") for text in found.explained[:4]
    ]
    return Group(*lines)


def _result(found: Detail) -> RenderableType:
    result = found.columns["result"]
    parts: list[RenderableType] = []
    if found.columns["error"]:
        parts.append(Text(clean(found.columns["error"]), style="red"))
    if isinstance(result, str):
        parts.append(Markdown(clean(result)))
    elif result is not None:
        parts.append(Syntax(_json(result), "json", word_wrap=True, background_color="default"))
    for left in found.artifacts:
        parts.append(Text(f"{left.kind}  {clean(left.path)}  {count(left.size)}B", style="dim"))
    return Group(*parts) if parts else _nothing("No result yet.")


def _attempts(found: Detail) -> RenderableType:
    parts: list[RenderableType] = []
    for attempt in reversed(found.attempts):
        parts.append(_attempt(attempt, found))
    return Group(*parts) if parts else _nothing("Nobody has claimed it yet.")


def _attempt(attempt: Attempt, found: Detail) -> RenderableType:
    end = attempt.finished_at or found.columns["now"]
    outcome = attempt.outcome or "running"
    tokens = f"{count(attempt.input_tokens)}/{count(attempt.output_tokens)}" if attempt.input_tokens is not None else ""
    facts = {
        "": f"attempt {attempt.number}: {outcome}",
        "on": f"{attempt.runner or 'a runner that is gone'}, {attempt.provider} {attempt.model or ''}".strip(),
        "took": f"{ago(end - attempt.started_at)}, since {attempt.started_at:%m-%d %H:%M}",
        "tokens": tokens,
        "cost": money(attempt.cost),
        "turns": str(attempt.turns or ""),
        "exit": "" if attempt.exit_code is None else str(attempt.exit_code),
        "branch": attempt.branch or "",
        "commit": (attempt.commit or "")[:12],
        "jail": attempt.sandbox or "",
        "does": attempt.doing or "",
        "says": (attempt.evidence or "")[:2000] if outcome != "completed" else "",
    }
    return Group(_table(facts), Text())


def draw_diff(diff: str | None) -> RenderableType:
    """A diff in colours; said so where there is none."""
    if diff is None:
        return _nothing("No diff. A task that names a repository has one once it has committed.")
    return Syntax(clean(diff), "diff", word_wrap=True, background_color="default")


def _verify(found: Detail) -> RenderableType:
    if not found.proofs:
        command = found.columns["verify"]
        return _nothing(f"To be proved by: {command}" if command else "No command proves this task.")
    parts: list[RenderableType] = []
    for proof in reversed(found.proofs):
        verdict = ("passed", "green") if proof.passed else ("failed", "red")
        code = "stopped" if proof.exit_code is None else f"exit {proof.exit_code}"
        parts.append(Text.assemble(verdict, f"  attempt {proof.number}, {code}, {ago(proof.duration)}"))
        parts.append(Text(clean(proof.command), style="bold"))
        parts.append(Text(clean(proof.output)))
    return Group(*parts)


def _handoffs(found: Detail) -> RenderableType:
    parts: list[RenderableType] = []
    for handoff in found.handoffs:
        parts += _handoff(handoff, found.id)
    if found.children:
        parts.append(Text("Children: " + ", ".join(f"{n} {status}" for status, n in found.children.items())))
    return Group(*parts) if parts else _nothing("It was not handed over, and has no children.")


def _handoff(handoff: Handoff, task: int) -> Sequence[RenderableType]:
    other = f"to task {handoff.to_task}" if handoff.from_task == task else f"from task {handoff.from_task}"
    facts = {
        "": f"{handoff.source} → {handoff.target} ({handoff.reason}), {other}",
        "summary": f"{handoff.summary or ''} (by the {handoff.summary_by or 'agent'})",
        "pending": "\n".join(handoff.pending),
        "files": ", ".join(handoff.artifacts),
    }
    return [_table(facts), Text()]


def _checkpoint(found: Detail) -> RenderableType:
    saved = found.checkpoint
    if saved is None:
        return _nothing("No checkpoint was saved.")
    head = Text(f"{saved.progress:.0%}  {clean(saved.status)}  (attempt {saved.attempt}, version {saved.version})")
    return Group(head, Syntax(_json(saved.data), "json", word_wrap=True, background_color="default"))


def _facts(found: Detail) -> RenderableType:
    columns = found.columns
    facts = {name: _said(columns[name]) for name in FACTS if columns[name] not in (None, [], "")}
    return Group(Text("\n".join(clean(text) for text in found.explained), style="yellow"), Text(), _table(facts))


FACTS = (
    "prompt", "agent", "routed_by", "scope", "priority", "created_by", "created_at", "run_at", "started_at",
    "finished_at", "parent_id", "depends_on", "workspace", "repository", "base", "push_to", "verify", "requires",
    "provider", "model", "on_limit", "max_attempts", "failure_count", "timeout", "payload",
)  # fmt: skip


def _said(value: Any) -> str:
    if isinstance(value, dict | list):
        return _json(value)
    return f"{value:%Y-%m-%d %H:%M:%S}" if hasattr(value, "strftime") else str(value)


def _table(facts: dict[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(clean(value), style="bold" if name == "" else ""))
    return table


def _json(value: Any) -> str:
    return clean(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _nothing(text: str) -> RenderableType:
    return Text(text, style="dim")


DRAWN: dict[str, Draw] = {
    "Result": _result,
    "Attempts": _attempts,
    "Diff": lambda _: Text(),
    "Verify": _verify,
    "Handoffs": _handoffs,
    "Checkpoint": _checkpoint,
    "Explain": _facts,
}
