"""A small window that asks for a line of text, or for a yes."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.validation import Validator
from textual.widgets import Button, Input, Label


class Ask(ModalScreen[str | None]):
    """Returns the text, or None where it was left. Without `required` an empty text is one too."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 70;
        max-width: 96%;
        height: auto;
        max-height: 90%;
        border: round $primary;
        padding: 0 1;
        background: $surface;
    }
    Ask Label { width: 1fr; }
    Ask Label#title { text-style: bold; }
    Ask Horizontal { height: auto; align-horizontal: right; }
    Ask Button { min-width: 8; margin-left: 1; }
    """

    def __init__(
        self, title: str, question: str, *, value: str = "", required: bool = True, validator: Validator | None = None
    ) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._value = value
        self._required = required
        self._validator = validator

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._title, id="title", markup=False)
            yield Label(self._question, markup=False)
            yield Input(self._value, validators=[self._validator] if self._validator else None)
            with Horizontal():
                yield Button(self._title, variant="primary", id="yes", compact=True)
                yield Button("Cancel", id="no", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#yes")
    def accept(self) -> None:
        field = self.query_one(Input)
        if (self._required and not field.value.strip()) or (self._validator is not None and not field.is_valid):
            field.focus()
            return
        self.dismiss(field.value.strip())

    @on(Button.Pressed, "#no")
    def leave(self) -> None:
        self.dismiss(None)


class Confirm(ModalScreen[bool]):
    """Asks before something that cannot be undone."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No"),
        Binding("y", "answer(True)", "Yes"),
    ]

    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical {
        width: 60;
        max-width: 96%;
        height: auto;
        border: round $warning;
        padding: 0 1;
        background: $surface;
    }
    Confirm Label { width: 1fr; }
    Confirm Horizontal { height: auto; align-horizontal: right; }
    Confirm Button { min-width: 8; margin-left: 1; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button("Yes", variant="warning", id="yes", compact=True)
                yield Button("No", id="no", compact=True)

    @on(Button.Pressed)
    def press(self, message: Button.Pressed) -> None:
        self.dismiss(message.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
