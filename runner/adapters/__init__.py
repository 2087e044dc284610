"""Ways to run work: one file per provider, and those that other packages bring."""

from .base import Adapter, BadSettings, CannotRun, Exit, Launch, Offer, Reading, Run, Said, Seen, Session, Upstream

__all__ = [
    "Adapter",
    "BadSettings",
    "CannotRun",
    "Exit",
    "Launch",
    "Offer",
    "Reading",
    "Run",
    "Said",
    "Seen",
    "Session",
    "Upstream",
]
