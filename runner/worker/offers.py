"""What this host can run: every adapter is asked at the start and each minute, local servers more often."""

import asyncio
import logging
import os
from typing import Any

from ..adapters import Offer
from ..adapters.registry import adapters, probe

log = logging.getLogger("taskyard.runner")

AGAIN = 60.0  # seconds between two looks at tools and logins
LOADED = 5.0  # seconds between two looks at which local models are in memory
PATIENCE = 30.0  # seconds for one look at one provider
AT_START = 0.7  # seconds that registration waits for the first looks; slower ones are offered when they are done


class Offers:
    """Keeps the last answer of each provider and tells what changed."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def first(self, providers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is known within AT_START; the rest comes with changed()."""
        self._last.clear()
        self._begin(providers)
        if self._looks:
            await asyncio.wait(self._looks.values(), timeout=AT_START)
        return self._collect()

    async def changed(self, providers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Look at all providers again; returns those whose answer is new."""
        self._begin(providers)
        return await self.rest()

    async def rest(self) -> list[dict[str, Any]]:
        """Wait for the looks under way; returns what is new."""
        if self._looks:
            await asyncio.wait(self._looks.values())
        return self._collect()

    async def loaded(self) -> list[dict[str, Any]]:
        """Where the local models in memory changed: the offers of those providers, anew."""
        news: list[dict[str, Any]] = []
        for name, offer in list(self._last.items()):
            provider = self._known.get(name)
            if provider is None or offer["state"] != "ready" or offer["loaded"] is None:
                continue
            now = await _loaded(provider)
            if now is not None and now != offer["loaded"]:
                self._last[name] = {**offer, "loaded": now}
                news.append(self._last[name])
        return news

    def _begin(self, providers: list[dict[str, Any]]) -> None:
        self._known = {p["name"]: p for p in providers if p["adapter"] in adapters()}
        for name, provider in self._known.items():
            if name not in self._looks:
                self._looks[name] = asyncio.create_task(_look(provider))

    def _collect(self) -> list[dict[str, Any]]:
        news: list[dict[str, Any]] = []
        for name, look in list(self._looks.items()):
            if look.done():
                del self._looks[name]
                offer = look.result()
                if self._last.get(name) != offer:
                    self._last[name] = offer
                    news.append(offer)
        return news


async def _loaded(provider: dict[str, Any]) -> list[str] | None:
    """Sorted, so that the same models in another order are no news."""
    adapter = adapters()[provider["adapter"]]
    found = await asyncio.to_thread(adapter.loaded, provider["settings"], os.environ)
    return None if found is None else sorted(found)


async def _look(provider: dict[str, Any]) -> dict[str, Any]:
    adapter = adapters()[provider["adapter"]]
    loaded = None
    try:
        async with asyncio.timeout(PATIENCE):
            offer = await asyncio.to_thread(probe, adapter, provider["settings"], os.environ)
            if offer.state == "ready":
                loaded = await _loaded(provider)
    except TimeoutError:
        offer = Offer("missing", detail=f"it did not answer within {PATIENCE:.0f} s")
    except Exception as error:  # a third party's adapter may raise anything
        log.exception("provider %s: its adapter failed", provider["name"])
        offer = Offer("missing", detail=f"its adapter failed: {error}")
    return {
        "provider": provider["name"],
        "account": offer.account,
        "state": offer.state,
        "models": offer.models,
        "loaded": loaded,
        "version": offer.version,
        "detail": offer.detail,
    }
