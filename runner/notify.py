"""Brings what is in the outbox (the table pushes) to ntfy and to webhooks, and what was pressed there back.

The database decides what is sent, when again and until when; see sql/functions/next_pushes.sql. Two of these at once,
or one that is killed at any moment, lose nothing: what was not reported is sent again after a minute.
ntfy's interface: https://docs.ntfy.sh/publish/ (publishing as JSON) and https://docs.ntfy.sh/subscribe/api/ (polling).
"""

import asyncio
import json
import logging
import os
from datetime import timedelta
from typing import Any

import httpx
import psycopg

from .errors import from_database
from .postgres import Cluster
from .verbs import Connection
from .worker.link import Link

log = logging.getLogger("taskyard.notify")

PAUSE = 1.0  # seconds between two looks into the outbox
ANSWERS = 3.0  # seconds between two looks for pressed buttons
TIMEOUT = 10.0  # seconds for one sending; the reservation in the database is a minute
BATCH = 10
LONGEST_ANSWER = 1_000_000  # bytes of a topic with answers that are read at once


class Notifier:
    """One outbox, one loop. `dsn` belongs to an administrator: whoever sends sees what is sent."""

    def __init__(self, dsn: str, cluster: Cluster | None = None, pooler: bool = False) -> None:
        self._link = Link(dsn, pooler, cluster, lambda _: None, "taskyard notify")
        self._client = httpx.AsyncClient(timeout=TIMEOUT, headers={"User-Agent": "taskyard"})

    async def run(self) -> None:
        """Until cancelled. Raises TaskyardError where the database refuses."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._outbox())
                group.create_task(self._answers())
        except* psycopg.Error as refused:
            raise from_database(_first(refused)) from refused
        finally:
            await self._close()

    async def once(self) -> int:
        """Send what is due now; returns how many were delivered. Raises TaskyardError."""
        try:
            return sum(await self._round())
        except psycopg.Error as refused:
            raise from_database(refused) from refused
        finally:
            await self._close()

    async def _close(self) -> None:
        await self._client.aclose()
        await self._link.close()

    async def _outbox(self) -> None:
        while True:
            if len(await self._round()) < BATCH:
                await asyncio.sleep(PAUSE)

    async def _round(self) -> list[bool]:
        pushes = await self._link.call(_next_pushes, BATCH)
        return await asyncio.gather(*(self._send(push) for push in pushes))

    async def _send(self, push: dict[str, Any]) -> bool:
        """Send one, and report what came of it; returns whether it was delivered."""
        receipt, error, again = None, None, None
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await self._client.post(
                    push["url"].rsplit("/", 1)[0] if push["target_kind"] == "ntfy" else push["url"],
                    json=push["body"],
                    headers={"Idempotency-Key": f"push-{push['id']}", **_authorization(push["token_env"])},
                )
            if answer.is_success:
                receipt = _receipt(answer)
            else:
                error = f"HTTP {answer.status_code} {answer.text[:200]}".strip()
                again = _retry_after(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as trouble:
            error = str(trouble).strip() or type(trouble).__name__
        if error is not None:
            log.warning("%s: push %s: %s", push["target"], push["id"], error)
        told = await self._link.call(_report, push["id"], push["try"], receipt, error, again)
        return told == "delivered"

    async def _answers(self) -> None:
        while True:
            for source in await self._link.call(_sources):
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await self._read_answers(source)
                except (httpx.HTTPError, TimeoutError, OSError, ValueError) as trouble:
                    log.warning("%s: answers: %s", source["target"], str(trouble).strip() or type(trouble).__name__)
            await asyncio.sleep(ANSWERS)

    async def _read_answers(self, source: dict[str, Any]) -> None:
        read = 0
        async with self._client.stream(
            "GET",
            f"{source['url']}/json",
            params={"poll": "1", "since": source["since"] or "all"},
            headers=_authorization(source["token_env"]),
        ) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                read += len(line)
                if read > LONGEST_ANSWER:
                    return
                message: Any = json.loads(line) if line.strip() else None
                if isinstance(message, dict) and message.get("event") == "message":  # pyright: ignore[reportUnknownMemberType]
                    told = await self._link.call(
                        _press, source["target"], str(message.get("message")), str(message.get("id"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
                    )  # fmt: skip
                    log.info("%s: %s", source["target"], told)


async def _next_pushes(connection: Connection, limit: int) -> list[dict[str, Any]]:
    return await (await connection.execute("select * from taskyard.next_pushes(%s)", [limit])).fetchall()


async def _report(
    connection: Connection, push: int, number: int, receipt: str | None, error: str | None, again: timedelta | None
) -> str:
    query = "select taskyard.report_push(%s, %s, %s, %s, %s) as told"
    return (await (await connection.execute(query, [push, number, receipt, error, again])).fetchall())[0]["told"]


async def _sources(connection: Connection) -> list[dict[str, Any]]:
    return await (await connection.execute("select * from taskyard.push_answers()")).fetchall()


async def _press(connection: Connection, target: str, message: str, since: str) -> str:
    query = "select taskyard.press_button(%s, %s, %s) as told"
    return (await (await connection.execute(query, [target, message.replace("\0", ""), since])).fetchall())[0]["told"]


def _authorization(variable: str | None) -> dict[str, str]:
    token = os.environ.get(variable, "").strip() if variable else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def _receipt(answer: httpx.Response) -> str:
    """What the other side calls the message, where it says so; else its status."""
    try:
        said = answer.json()
    except ValueError:
        said = None
    name = said.get("id") if isinstance(said, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return f"HTTP {answer.status_code}" + (f", {name}" if isinstance(name, str | int) else "")


def _retry_after(answer: httpx.Response) -> timedelta | None:
    said = answer.headers.get("Retry-After", "")
    return timedelta(seconds=min(int(said), 86400)) if said.isascii() and said.isdigit() else None


def _first(group: BaseExceptionGroup[psycopg.Error]) -> psycopg.Error:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
