"""The SQL of the README and of docs/, as it stands: all of it is understood, and nothing fails but for a number of the page's own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from taskyard.runner.postgres.binaries import find_binaries

from .conftest import Yard
from .yardwork import claim, end, insert, register

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```sql" in path.read_text()]
# Task 17 of a page may be over already, or ask nothing: the verbs say so, and that is what a reader would be told as well.
OF_THE_NUMBER = {"TY002", "TY004"}


def statements(page: Path) -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.fixture
def busy(yard18: Yard) -> Yard:
    """Twenty tasks, of which 17 runs and asks, 18 too, and some are over."""
    admin = yard18.connect()
    admin.execute("insert into scopes (name, parent, may_network) values ('offline', 'default', false)")
    admin.execute("update agents set route = '{command}', command = '{sh}' where name = 'claude'")
    for n in range(1, 21):
        insert(admin, f"task {n}", agent="shell", scope="offline", priority=100 - abs(17 - n))
    runner = register(admin, "mill", slots=6)
    running = {row["task_id"]: row["attempt_id"] for row in claim(admin, runner, 6)}
    admin.execute("select request_permission(%s, '{network}', p_why => 'to fetch')", [running[17]])
    end(admin, running[16])
    end(admin, running[15], "permission_denied")
    return yard18


def test_there_are_pages() -> None:
    assert len(PAGES) > 8 and sum(len(statements(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_sql_of_a_page_works_as_it_stands(busy: Yard, page: Path) -> None:
    for block in statements(page):
        ran = subprocess.run(
            [find_binaries().folder / "psql", "-X", "-v", "VERBOSITY=verbose", busy.dsn],
            input=block,
            text=True,
            capture_output=True,
            env={**os.environ, "PAGER": "cat"},
            timeout=60,
        )
        complaints = re.findall(r"ERROR:  (\w{5}): (.*)", ran.stderr)
        assert ran.returncode == 0, ran.stderr
        assert [said for said in complaints if said[0] not in OF_THE_NUMBER] == [], block
