"""The form for a new task. The database says while you type whether it would take it: no rule is repeated here."""

import re
from asyncio import sleep
from contextlib import suppress
from typing import Any, ClassVar, cast

from psycopg.types.json import Jsonb
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from taskyard.runner.actions import Submission

from .pane import yard_of
from .store import Away, Refused, actions, tasks
from .store.models import Template

PAUSE = 0.3  # seconds without a key before the database is asked
JSON = {"payload", "output_schema"}
DEFAULTS = {"agent": "default", "scope": "default"}


class NewTask(ModalScreen[int | None]):
    """Returns the id of the task, or None. `like`: columns of a task to begin from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel"),
        Binding("ctrl+s", "submit", "Submit", priority=True),
    ]

    DEFAULT_CSS = """
    NewTask { align: center middle; }
    NewTask > Vertical {
        width: 90;
        max-width: 100%;
        height: auto;
        max-height: 100%;
        border: round $primary;
        background: $surface;
        padding: 0 1;
    }
    NewTask VerticalScroll { height: auto; max-height: 22; }
    NewTask TextArea { height: 6; border: tall $border-blurred; padding: 0; }
    NewTask TextArea:focus { border: tall $border; }
    NewTask .pair { height: auto; }
    NewTask .pair > Label { width: 13; padding: 0 1 0 0; }
    NewTask .pair > Input, NewTask .pair > Select { width: 1fr; }
    NewTask #verdict { height: auto; min-height: 1; padding: 0 1; }
    NewTask .buttons { height: auto; align-horizontal: right; }
    NewTask Button { min-width: 8; margin-left: 1; }
    """

    def __init__(self, like: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._like = like or {}
        self._templates: dict[str, Template] = {}
        self._rest: dict[str, Any] = {}  # what the template says beyond the fields of the form
        self._unfilled: list[str] = []

    def compose(self) -> ComposeResult:
        with Vertical():
            with VerticalScroll(can_focus=False):
                yield self._pair("template", Select([], prompt="none", id="template", compact=True))
                yield TextArea(
                    self._like.get("prompt", ""), id="prompt", tab_behavior="focus", placeholder="What is to be done?"
                )
                for name in ("agent", "scope"):
                    chosen = self._like.get(name) or DEFAULTS[name]
                    yield self._pair(
                        name, Select([(chosen, chosen)], value=chosen, allow_blank=False, id=name, compact=True)
                    )
                for name, hint in FIELDS.items():
                    value = self._like.get(name)
                    yield self._pair(
                        name,
                        Input("" if value in (None, [], 0) else _text(value), placeholder=hint, id=name, compact=True),
                    )
            yield Static(id="verdict", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Submit ^s", variant="primary", id="submit", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def _pair(self, name: str, field: Input | Select[str]) -> Horizontal:
        return Horizontal(Label(name.replace("_", " ")), field, classes="pair", id=f"pair-{name}")

    async def on_mount(self) -> None:
        self.query_one("#prompt", TextArea).focus()
        try:
            found = await tasks.choices(yard_of(self).link)
        except (Away, Refused):
            return
        for name, options in (("agent", [agent for agent, _ in found.agents]), ("scope", found.scopes)):
            field = self._select(name)
            chosen = field.value
            field.set_options([(option, option) for option in options])
            if chosen in options:
                field.value = chosen

        self._templates = found.templates
        self._select("template").set_options([(name, name) for name in found.templates])
        self.query_one("#pair-template").display = bool(found.templates)

    @on(Select.Changed, "#template")
    def begin_from(self, message: Select.Changed) -> None:
        """Fill the form from a template; its variables are there to be written over."""
        template = self._templates.get(str(message.value))
        self._unfilled = template.variables if template else []
        told = dict(template.task) if template else {}
        if template:
            self.query_one("#prompt", TextArea).text = str(told.pop("prompt", ""))
            for name in FIELDS:
                self.query_one(f"#{name}", Input).value = _text(told.pop(name, ""))
            for name, default in DEFAULTS.items():
                field, chosen = self._select(name), str(told.pop(name, default))
                if chosen in {option for _, option in field._options}:  # pyright: ignore[reportPrivateUsage]
                    field.value = chosen
        self._rest = {name: Jsonb(value) if name in JSON else value for name, value in told.items()}

    def _select(self, name: str) -> Select[str]:
        return cast(Select[str], self.query_one(f"#{name}", Select))

    def submission(self) -> Submission:
        """What the form says. Raises ValueError where a number is none."""
        given: dict[str, Any] = {name: self.query_one(f"#{name}", Input).value.strip() for name in FIELDS}
        given = {name: value for name, value in given.items() if value}
        for name in ("priority", "max_attempts"):
            if name in given:
                if not given[name].lstrip("+-").isdigit():
                    raise ValueError(f"{name.replace('_', ' ')} is a whole number.")
                given[name] = int(given[name])
        for name, kind in (("depends_on", int), ("requires", str)):
            if name in given:
                words = given[name].replace(",", " ").split()
                if kind is int and not all(word.isdigit() for word in words):
                    raise ValueError(f"{name.replace('_', ' ')} is a list of task ids.")
                given[name] = [kind(word) for word in words]
        agent, scope = (str(self._select(name).value) for name in DEFAULTS)
        prompt = self.query_one("#prompt", TextArea).text
        texts = " ".join([prompt, *(text for text in given.values() if isinstance(text, str))])
        open_ = [name for name in self._unfilled if re.search(r"\{\{ *" + re.escape(name) + r" *\}\}", texts)]
        if open_:
            raise ValueError(f"Write something for {', '.join('{{' + name + '}}' for name in open_)}.")
        return Submission(prompt, agent=agent, scope=scope, **{**self._rest, **given})

    @on(TextArea.Changed)
    @on(Input.Changed)
    @on(Select.Changed)
    def changed(self) -> None:
        self.check()

    @work(exclusive=True, group="check")
    async def check(self) -> None:
        """Ask the database whether it would take this, once nobody types."""
        await sleep(PAUSE)
        with suppress(NoMatches):  # where the form was left meanwhile
            await self._check()

    async def _check(self) -> None:
        verdict = self.query_one("#verdict", Static)
        if not self.query_one("#prompt", TextArea).text.strip():
            verdict.update("")
            return
        try:
            await actions.rehearse(yard_of(self).link, self.submission())
            verdict.update(Text("The yard takes this.", style="green"))
        except ValueError as wrong:
            verdict.update(Text(str(wrong), style="red"))
        except Refused as refused:
            verdict.update(Text(f"{refused} {refused.hint or ''}".strip(), style="red"))
        except Away:
            verdict.update(Text("The database does not answer.", style="red"))

    @on(Button.Pressed, "#submit")
    def press(self) -> None:
        self.action_submit()

    @on(Button.Pressed, "#cancel")
    def leave(self) -> None:
        self.dismiss(None)

    @work(exclusive=True, group="submit")
    async def action_submit(self) -> None:
        """Insert the task; what the database refuses is said, and the form stays."""
        verdict = self.query_one("#verdict", Static)
        try:
            self.dismiss(await actions.submit(yard_of(self).link, self.submission()))
        except ValueError as wrong:
            verdict.update(Text(str(wrong), style="red"))
        except Refused as refused:
            verdict.update(Text(f"{refused} {refused.hint or ''}".strip(), style="red"))
        except Away:
            verdict.update(Text("The database does not answer; try again when it does.", style="red"))


FIELDS = {
    "priority": "0; higher runs first",
    "depends_on": "ids of tasks that must complete first",
    "workspace": "a directory on the runner's host",
    "repository": "a git repository there: a branch of its own",
    "verify": "the command that proves the work",
    "requires": "labels that a runner must have",
    "provider": "only this one",
    "model": "only this one",
    "max_attempts": "the agent's default",
}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType]
