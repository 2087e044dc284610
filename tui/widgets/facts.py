"""Tables of a few rows, filled anew without losing the cursor."""

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

Cell = str | Text


class Facts(DataTable[Cell]):
    """A table whose rows have keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    DEFAULT_CSS = """
    Facts { height: auto; max-height: 100%; overflow-x: auto; background: transparent; }
    """

    def __init__(self, *columns: str, id: str | None = None) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, cell_padding=1)
        self._names = columns
        self._filled: dict[str, Sequence[Cell]] = {}

    def on_mount(self) -> None:
        for name in self._names:
            self.add_column(name, key=name)

    @property
    def key(self) -> str | None:
        """The key of the row under the cursor."""
        keys = list(self._filled)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def fill(self, rows: dict[str, Sequence[Cell]]) -> None:
        """Show these rows, by key. What is as it was is not drawn again."""
        if list(rows) == list(self._filled):
            for key, cells in rows.items():
                for name, cell, before in zip(self._names, cells, self._filled[key], strict=True):
                    if cell != before:
                        self.update_cell(key, name, cell, update_width=True)
        else:
            chosen = self.key
            self.clear()
            for key, cells in rows.items():
                self.add_row(*cells, key=key)
            if chosen in rows:
                self.move_cursor(row=list(rows).index(chosen), animate=False)
        if rows != self._filled:
            self.call_after_refresh(self._fit)
        self._filled = dict(rows)

    def _fit(self) -> None:
        """Draw the header anew: it may have been drawn before the columns had their widths, and is remembered so."""
        self._clear_caches()
        self.refresh()


def plain(value: Any) -> Text:
    """A cell whose brackets are brackets, and no markup."""
    return Text("" if value is None else str(value))
