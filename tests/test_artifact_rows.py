"""What attempts leave is kept as rows: checked, replaced by path, gone with the task."""

import hashlib

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import column, rows, value
from .yardwork import claim, end, insert, refusal, register

ADD = "select add_artifact(%s, %s, %s, %s, %s, %s)"


def add(db: Connection[DictRow], attempt: int, path: str, content: bytes | None = b"hello", kind: str = "file") -> None:
    digest = hashlib.sha256(content or b"").hexdigest()
    db.execute(ADD, [attempt, path, len(content or b"") if content else 5_000_000, digest, content, kind])


@pytest.fixture
def attempt(db: Connection[DictRow]) -> int:
    insert(db)
    return claim(db, register(db))[0]["attempt_id"]


def test_a_file_is_read_back_and_a_second_one_replaces_it(db: Connection[DictRow], attempt: int) -> None:
    add(db, attempt, "report/first page.md", b"one")
    add(db, attempt, "report/first page.md", b"two", "diff")
    add(db, attempt, "large.bin", None)
    found = rows(
        db,
        "select path, kind, size, convert_from(content, 'UTF8') as text, scope, task_id from artifacts order by path desc",
    )
    task = value(db, "select id from tasks")
    assert found == [
        {"path": "report/first page.md", "kind": "diff", "size": 3, "text": "two", "scope": "default", "task_id": task},
        {"path": "large.bin", "kind": "file", "size": 5_000_000, "text": None, "scope": "default", "task_id": task},
    ]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".", "./a", "a\nb", "x" * 4096])
def test_a_path_that_leads_elsewhere_is_refused(db: Connection[DictRow], attempt: int, path: str) -> None:
    error = refusal(db, ADD, attempt, path, 0, "0" * 64, None, "file")
    assert error is not None
    assert error.sqlstate == "TY001"
    assert value(db, "select count(*) from artifacts") == 0


@pytest.mark.parametrize(
    ("size", "digest", "content", "kind"),
    [
        (5, "0" * 64, b"hello", "file"),
        (4, hashlib.sha256(b"hello").hexdigest(), b"hello", "file"),
        (-1, "0" * 64, None, "file"),
        (None, "0" * 64, None, "file"),
        (0, "A" * 64, None, "file"),
        (0, None, None, "file"),
        (0, "0" * 64, None, "folder"),
        (0, "0" * 64, None, None),
        (4194305, hashlib.sha256(bytes(4194305)).hexdigest(), bytes(4194305), "file"),
    ],
)
def test_a_file_that_is_not_what_it_is_said_to_be_is_refused(
    db: Connection[DictRow], attempt: int, size: int | None, digest: str | None, content: bytes | None, kind: str | None
) -> None:
    error = refusal(db, ADD, attempt, "x", size, digest, content, kind)
    assert error is not None
    assert error.sqlstate == "TY001"
    assert value(db, "select count(*) from artifacts") == 0


def test_the_largest_file_that_is_kept_has_four_megabytes(db: Connection[DictRow], attempt: int) -> None:
    add(db, attempt, "x", bytes(4194304))
    assert value(db, "select octet_length(content) from artifacts") == 4194304


def test_an_attempt_leaves_two_hundred_at_most(db: Connection[DictRow], attempt: int) -> None:
    for n in range(200):
        add(db, attempt, str(n))
    error = refusal(db, ADD, attempt, "one more", 0, "0" * 64, None, "file")
    assert error is not None
    assert error.sqlstate == "TY004"


def test_the_last_of_two_hundred_may_still_be_replaced(db: Connection[DictRow], attempt: int) -> None:
    for n in range(200):
        add(db, attempt, str(n))
    add(db, attempt, "199", b"again")
    assert value(db, "select convert_from(content, 'UTF8') from artifacts where path = '199'") == "again"


def test_nothing_is_added_to_an_attempt_that_is_over(db: Connection[DictRow], attempt: int) -> None:
    add(db, attempt, "x")
    end(db, attempt)
    error = refusal(db, ADD, attempt, "y", 0, "0" * 64, None, "file")
    assert error is not None
    assert error.sqlstate == "TY005"
    assert column(db, "select path from artifacts") == ["x"]


def test_a_deleted_task_takes_its_files_along(db: Connection[DictRow], attempt: int) -> None:
    add(db, attempt, "x")
    end(db, attempt)
    db.execute("delete from tasks")
    assert value(db, "select count(*) from artifacts") == 0
