"""A client of pgmq in another language, which knows nothing of Taskyard, submits a task and receives its end."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .vendor_tools import INSTALL_TIMEOUT
from .yardwork import claim, end, register

VERSION = "1.3.1"  # of pgmq-js
PROGRAM = Path(__file__).with_name("pgmq_client.mjs")


def pgmq_js() -> Path:
    """The folder that holds pgmq-js, installed first where it is missing. Skips where it cannot be, except in CI."""
    home = Path(__file__).parent.parent / "build" / f"pgmq-js-{VERSION}"
    home.parent.mkdir(exist_ok=True)
    with (home.parent / ".pgmq-js-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            try:
                _install(home)
            except (OSError, subprocess.SubprocessError) as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"npm could not install pgmq-js here: {error}")
    return home


def _install(home: Path) -> None:
    """Into a folder beside it first, so that half an installation is never taken for one."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as scratch:
        made = Path(scratch) / "installed"
        made.mkdir()
        (made / "package.json").write_text('{"private": true}\n')
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--cache", f"{scratch}/cache", f"pgmq-js@{VERSION}"],
            cwd=made, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=INSTALL_TIMEOUT,
        )  # fmt: skip
        made.rename(home)


def test_a_node_program_submits_tasks_and_receives_the_end_of_one(yard18: Yard) -> None:
    if shutil.which("node") is None and not os.environ.get("CI"):
        pytest.skip("node is not installed here")
    library = pgmq_js()
    db = yard18.connect()
    db.execute("select pgmq.create('done')")
    db.execute("select pgmq.bind_topic('task.completed.#', 'done')")
    login = conninfo_to_dict(yard18.login("js", "submitter", "default"))
    # pgmq's own rights: this queue is for that login to read.
    db.execute(sql.SQL("grant select, update, delete on pgmq.q_done to {}").format(sql.Identifier(str(login["user"]))))
    runner = register(db)
    where = [str(login[key]) for key in ("host", "port", "dbname", "user", "password")]
    with subprocess.Popen(
        ["node", PROGRAM, library, *where, "from afar"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            while value(db, "select count(*) from tasks") < 3:
                assert program.poll() is None, program.communicate()
                db.execute("select tick()")
            (row,) = claim(db, runner)  # by its priority
            assert row["prompt"] == "from afar"
            assert end(db, row["attempt_id"], result=Jsonb("done")) == "completed"
            out, errors = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 0, errors
    event = json.loads(out)
    assert (event["id"], event["status"], event["operation"]) == (row["task_id"], "completed", "update")
    assert column(db, "select prompt from tasks order by id") == ["from afar", "one", "two"]
    assert column(db, "select distinct created_by from tasks") == [login["user"]]
    assert rows(db, "select * from rejected_submissions") == []
    assert value(db, "select count(*) from pgmq.q_done") == 0, "it has deleted what it read"
