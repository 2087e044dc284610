"""Which adapters this installation has: ours, and those of other packages (entry points of taskyard.adapters)."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .base import Adapter, BadSettings, Offer
from .claude import Claude
from .codex import Codex
from .command import Command
from .gemini import Gemini
from .openai import OpenAI
from .opencode import Opencode

log = logging.getLogger("taskyard.runner")

GROUP = "taskyard.adapters"


def built_in() -> list[Adapter]:
    return [Command(), Claude(), Codex(), Gemini(), Opencode(), OpenAI()]


@cache
def adapters() -> dict[str, Adapter]:
    """All adapters by name. One that cannot be loaded is left out with a warning; ours cannot be replaced."""
    found = {adapter.name: adapter for adapter in built_in()}
    for entry in entry_points(group=GROUP):
        try:
            adapter = entry.load()()
            if not isinstance(adapter, Adapter):
                raise TypeError(f"{entry.value} is no subclass of taskyard.runner.adapters.Adapter")
            if adapter.name in found:
                raise TypeError(f"there is an adapter {adapter.name} already")
        except Exception as error:  # whatever a stranger's code raises
            log.warning("the adapter %s cannot be used: %s", entry.name, error)
        else:
            found[adapter.name] = adapter
    return found


def probe(adapter: Adapter, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
    """What this host can offer of a provider; the setting `account` overrules the login's own name."""
    try:
        offer = adapter.probe(settings, environ)
    except BadSettings as error:
        return Offer("missing", detail=str(error))
    return replace(offer, account=settings.get("account") or offer.account)
