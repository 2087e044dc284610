"""What the panes and screens have in common."""

from typing import TYPE_CHECKING, cast

from textual.message_pump import MessagePump
from textual.widget import Widget

from .store.models import Change

if TYPE_CHECKING:
    from .app import Taskyard


def yard_of(part: MessagePump) -> "Taskyard":
    """The application that a part of it belongs to, with its link to the database."""
    return cast("Taskyard", part.app)  # pyright: ignore[reportUnknownMemberType]


class Pane(Widget):
    """One of the tabs: shows something that is in the database."""

    DEFAULT_CSS = "Pane { height: 1fr; width: 1fr; }"

    @property
    def yard(self) -> "Taskyard":
        """The application."""
        return yard_of(self)

    async def update(self, change: Change | None) -> None:
        """Ask anew, and draw. `change`: what was heard; None: nothing, it is only time. Raises Away, Refused."""
        raise NotImplementedError
