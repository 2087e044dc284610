"""All that the screens ask of the database and do in it. Every SQL string of the TUI is in this folder."""

from .link import Away, Link, Refused

__all__ = ["Away", "Link", "Refused"]
