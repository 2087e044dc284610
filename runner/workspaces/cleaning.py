"""What is kept on this host for tasks, and when it goes: never while it holds work that is nowhere else.

A folder goes when its task has been over for long enough, no task that goes on with its files is still kept, and its
clone, if it has one, has nothing that is uncommitted or not yet in the user's repository; what is, is committed and
delivered first. What cannot be stays, and is told of once.
"""

import asyncio
import logging
from collections.abc import Collection
from datetime import timedelta

from ..sandbox.levels import Confinement
from ..worker.places import Places
from .clone import held, load
from .work import release, settle

log = logging.getLogger("taskyard.runner")

KEPT = timedelta(days=14)


class Cleaning:
    """Cleans up one runner's places. `kept`: for how long after a task's last attempt here."""

    def __init__(self, places: Places, confinement: Confinement, kept: timedelta = KEPT) -> None:
        self._places = places
        self._confinement = confinement
        self._kept = kept
        self._told: dict[int, str] = {}

    async def clean(self, over: Collection[int], running: Collection[int]) -> None:
        """Deliver what could not be delivered before, and remove what is old enough.

        `over`: those of places.tasks() that the database calls over; `running`: those at work in this runner.
        """
        going_on = await asyncio.to_thread(self._places.going_on)
        at_work = {*running, *(going_on[task] for task in running if task in going_on)}
        # The youngest first: they may go on with the files of older ones.
        for task in reversed(await asyncio.to_thread(self._places.tasks)):
            if task in at_work:
                continue
            if task in over and self._places.age(task) >= self._kept.total_seconds():
                await self.forget(task)
            elif (record := load(self._places.folder_of(task))) is not None and not record.settled:
                with held(self._places.folder_of(task)) as free:
                    if free:
                        await self._settled(task)

    async def forget(self, task: int) -> bool:
        """Remove all that is kept for a task that is over, unless something still needs it; returns whether it went."""
        if task in (await asyncio.to_thread(self._places.going_on)).values():
            return False
        folder = self._places.folder_of(task)
        with held(folder) as free:
            if not free or not await self._settled(task):
                return False
            await release(folder, self._confinement)
            await asyncio.to_thread(self._places.forget, task)
        self._told.pop(task, None)
        return True

    async def ended(self, task: int) -> None:
        """A task has ended well: without a clone, and with nobody to go on with its files, nothing needs to be kept."""
        if load(self._places.folder_of(task)) is None:
            await self.forget(task)

    async def _settled(self, task: int) -> bool:
        why = await settle(self._places.folder_of(task), self._confinement)
        if why is None:
            return True
        if self._told.get(task) != why:
            self._told[task] = why
            log.warning("task %s: its work stays in %s: %s", task, self._places.folder_of(task), why)
        return False
