"""What waits for a person: permissions, questions, budgets that are used up."""

from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from ..pane import Pane
from ..store import actions, detail
from ..store.models import Change, Question
from ..widgets.ask import Ask
from ..widgets.facts import Facts, plain
from ..words import ago, clean, one_line


class InboxPane(Pane):
    """The questions, and below them the one under the cursor in full."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "approve", "Approve"),
        Binding("d", "deny", "Deny"),
        Binding("r", "answer", "Answer"),
        Binding("enter", "open", "Task", priority=True),
    ]

    DEFAULT_CSS = """
    InboxPane { layout: vertical; }
    InboxPane Facts { max-height: 50%; }
    InboxPane VerticalScroll { height: 1fr; border-top: solid $panel; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__(id="inbox")
        self._questions: dict[str, Question] = {}

    def compose(self) -> ComposeResult:
        yield Facts("id", "left", "kind", "task", "asks")
        with VerticalScroll(can_focus=False):
            yield Static(id="question")

    async def update(self, change: Change | None) -> None:
        self._questions = {str(found.id): found for found in await detail.inbox(self.yard.link)}
        self.query_one(Facts).fill(
            {
                key: (
                    plain(q.id),
                    plain("" if q.left is None else ago(q.left)),
                    plain(q.kind),
                    plain(q.scope if q.task is None else q.task),
                    plain(one_line(q.question)[:200]),
                )
                for key, q in self._questions.items()
            }
        )
        self._show()

    @on(DataTable.RowHighlighted)
    def _show(self) -> None:
        question = self.current
        shown = self.query_one("#question", Static)
        if question is None:
            shown.update(Text("Nothing waits for you.", style="dim"))
            return
        parts = [Text(clean(question.question), style="bold")]
        if question.wanted:
            parts.append(Text("It asks for: " + ", ".join(question.wanted)))
        if question.task is not None:
            parts.append(Text(f"\nTask {question.task} by {question.agent}, scope {question.scope}:", style="dim"))
            parts.append(Text(clean(question.prompt or "")))
        if question.left is not None:
            silence = "that it decides by itself" if question.kind == "question" else "no"
            parts.append(Text(f"\nSilence means {silence}, in {ago(question.left)}.", style="dim"))
        shown.update(Group(*parts))

    @property
    def current(self) -> Question | None:
        """The question under the cursor."""
        return self._questions.get(self.query_one(Facts).key or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action not in ("approve", "deny", "answer", "open"):
            return True
        question, rights = self.current, self.yard.link.rights
        if action == "open":
            return True if question is not None and question.task is not None else None
        if question is None or not rights.submit or (question.kind == "budget" and not rights.administer):
            return None
        return True if (action == "answer") == (question.kind == "question") or action == "deny" else None

    def action_open(self) -> None:
        if (question := self.current) is not None and question.task is not None:
            self.yard.open_task(question.task)

    def action_approve(self) -> None:
        if (question := self.current) is not None:
            self.yard.do(lambda link: actions.approve(link, question.id))

    def action_deny(self) -> None:
        if (question := self.current) is not None:
            ask = Ask("Deny", "Why? The agent reads it.", required=False)
            self.yard.ask(ask, lambda why: self.yard.do(lambda link: actions.deny(link, question.id, why or None)))

    def action_answer(self) -> None:
        if (question := self.current) is not None:
            ask = Ask("Answer", clean(question.question))
            self.yard.ask(ask, lambda text: self.yard.do(lambda link: actions.answer(link, question.id, text)))
