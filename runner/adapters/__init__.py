"""Ways to run work: one file per provider."""

from .base import Adapter, CannotRun, Exit, Launch
from .command import Command

ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in (Command(),)}

__all__ = ["ADAPTERS", "Adapter", "CannotRun", "Exit", "Launch"]
