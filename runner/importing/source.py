"""Reading a SQLite file of which nothing is known but that it has a table of tasks. The file is never written to."""

import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import TaskyardError

MAGIC = b"SQLite format 3\x00"

Row = dict[str, Any]  # values as SQLite has them: str, int, float, None


@dataclass
class Cleaned:
    """What could not be taken as it was: texts with NULs, and such that were no UTF-8."""

    nuls: int = 0
    broken: int = 0


@dataclass
class Source:
    """An open file: its tables, the columns of the one with tasks in lower case, and what reading had to clean."""

    connection: sqlite3.Connection
    table: str
    columns: list[str]
    order: str
    cleaned: Cleaned = field(default_factory=Cleaned)

    def rows(self) -> Iterator[Row]:
        """All rows, in the order in which they were inserted. Raises TaskyardError where the file is damaged."""
        try:
            for values in self.connection.execute(f"select * from {_quoted(self.table)} {self.order}"):
                yield {name: self._clean(value) for name, value in zip(self.columns, values, strict=True)}
        except sqlite3.DatabaseError as error:
            raise TaskyardError(
                f"The file cannot be read to its end: {error}.", "Try: sqlite3 FILE .recover | sqlite3 NEW"
            ) from error

    def _clean(self, value: Any) -> Any:
        if isinstance(value, bytes):  # texts come as bytes too: see text_factory
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                text = value.decode("utf-8", "replace")
                self.cleaned.broken += 1
            if "\0" in text:
                text = text.replace("\0", "")
                self.cleaned.nuls += 1
            return text
        return value


@contextmanager
def open_source(path: Path, table: str) -> Generator[Source]:
    """Open the file for reading, as of this moment, also while its orchestrator writes to it.

    Raises TaskyardError where it is no SQLite file or has no such table, OSError where it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise TaskyardError(f"{path} is no SQLite file.", "Name the file that the older orchestrator keeps.")
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.text_factory = bytes
        connection.execute("begin")
        tables = [
            name.decode()
            for (name,) in connection.execute(
                "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"
            )
        ]
        found = next((name for name in tables if name.lower() == table.lower()), None)
        if found is None:
            raise TaskyardError(
                f"{path} has no table {table}; it has: {', '.join(sorted(tables)) or 'none'}.",
                "Name the one with the tasks: --table NAME",
            )
        columns = [row[1].decode().lower() for row in connection.execute(f"pragma table_info({_quoted(found)})")]
        (made,) = connection.execute(
            "select sql from sqlite_master where type = 'table' and name = ?", [found]
        ).fetchone()
        order = "" if re.search(rb"without\s+rowid", made, re.IGNORECASE) else "order by rowid"
        yield Source(connection, found, columns, order)
    except sqlite3.DatabaseError as error:
        raise TaskyardError(
            f"{path} cannot be read: {error}.", "Is it whole? sqlite3 FILE 'pragma integrity_check'"
        ) from error
    finally:
        connection.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
