"""A yard in a minute: a real server, two real runners, a job graph inserted through psql, and one runner killed.

Where a local model is installed (make demo-local), it answers too. Everything told is checked; the exit code is 1 if
anything is not as told. It leaves nothing behind.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from typing import Any, LiteralString

import click
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from . import local
from .connection import connect
from .install import install
from .postgres import Cluster

DEADLINE = 50.0  # seconds for the whole graph

GRAPH = """
insert into scopes (name, parent, max_concurrency) values ('press', 'default', 1);
begin;
insert into tasks (agent, dedupe_key, prompt) values
  ('shell', 'build',  'sleep 1; echo built 3 packages'),
  ('shell', 'deploy', 'test "$TASKYARD_ATTEMPT" != 1 || { echo port in use >&2; exit 1; }; echo deployed'),
  ('shell', 'peek',   'ls /root /etc/shadow 2>&1 | sed "s/.*: //" | uniq; env | grep -i dsn || echo no way in'),
  ('shell', 'report', 'sleep 5; echo "report written by attempt $TASKYARD_ATTEMPT"'),
  ('shell', 'crawl',  'sleep 600');
insert into tasks (agent, dedupe_key, prompt, depends_on)
  select 'shell', 'test', 'sleep 1; echo 212 tests passed', array[id] from tasks where dedupe_key = 'build';
insert into tasks (agent, dedupe_key, prompt, run_at)
  values ('shell', 'digest', 'echo good morning', now() + interval '4 seconds');
insert into tasks (agent, scope, dedupe_key, prompt, priority) values
  ('shell', 'press', 'page one', 'sleep 0.5; echo printed', 0),
  ('shell', 'press', 'page two', 'sleep 0.5; echo printed', 0),
  ('shell', 'press', 'headline', 'sleep 0.5; echo printed', 10);
commit;
"""

QUESTIONS = """
insert into tasks (agent, dedupe_key, prompt, output_schema) values
  ('local', 'answer', 'Which animal barks, the cat or the dog?',
   '{"type": "object", "properties": {"animal": {"enum": ["cat", "dog"]}}, "required": ["animal"]}');
insert into tasks (agent, dedupe_key, prompt) values ('auto', 'routed', 'Summarize the minutes of the meeting.');
"""

POINTS: list[tuple[str, LiteralString, list[tuple[Any, ...]]]] = [
    (
        "A dependency: the tests waited for the build.",
        """
        select t.result #>> '{}' as result, t.started_at >= b.finished_at as after_build
        from tasks t, tasks b
        where t.dedupe_key = 'test' and b.dedupe_key = 'build'
        """,
        [("212 tests passed", True)],
    ),
    (
        "A retry: the first attempt failed, the second did not.",
        """
        select a.number, a.outcome, a.exit_code
        from attempts a join tasks t on t.id = a.task_id
        where t.dedupe_key = 'deploy' order by a.number
        """,
        [(1, "failed", 1), (2, "completed", 0)],
    ),
    (
        "A priority, and a scope that runs one at a time: the headline went first, and never two at once.",
        """
        select t.dedupe_key as page, t.priority, count(o.id) as ran_beside
        from tasks t join attempts a on a.task_id = t.id
        left join attempts o on o.scope = a.scope and o.id <> a.id
            and o.started_at < a.finished_at and a.started_at < o.finished_at
        where t.scope = 'press' group by t.id order by min(a.started_at)
        """,
        [("headline", 10, 0), ("page one", 0, 0), ("page two", 0, 0)],
    ),
    (
        "A delay: the digest started when its time had come.",
        """
        select status, started_at >= run_at as on_time, started_at < run_at + interval '15 seconds' as soon
        from tasks where dedupe_key = 'digest'
        """,
        [("completed", True, True)],
    ),
    (
        "A sandbox: what nobody granted does not exist, and the way into the database is not to be found.",
        "select result #>> '{}' as found from tasks where dedupe_key = 'peek'",
        [("No such file or directory\nno way in",)],
    ),
    (
        "A cancellation: the crawl was stopped while it ran.",
        "select status, error from tasks where dedupe_key = 'crawl'",
        [("cancelled", "changed my mind")],
    ),
]


class NotAsTold(Exception):
    """Something happened otherwise than the demo says."""


class Demo:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._home = Path(tempfile.mkdtemp(prefix="taskyard-demo-"))
        self._home.chmod(0o755)  # as root, the server runs as another account and has to get in
        stack.callback(shutil.rmtree, self._home, ignore_errors=True)
        self._cluster = Cluster(self._home, progress=lambda text: click.echo(f"  ({text})", err=True))
        self._runners: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> None:
        say("1. Start PostgreSQL, install Taskyard, start two runners")
        self._stack.callback(self._cluster.stop)
        self._cluster.start()
        self._dsn = self._cluster.url()
        with connect(self._dsn) as db:
            installed = install(db)
            click.echo(f"  schema {installed.after}, pgmq {installed.pgmq}")
            modelled = local.available() and self._start_model(db)
        for name in ("workstation", "laptop"):
            self._start_runner(name)
        # Connected only now: the search path that the installer gave the database is there from the start.
        db = self._stack.enter_context(connect(self._dsn))
        self._await(
            "both runners are up", lambda: count(db, "select from runners where last_seen > now() - interval '5s'") == 2
        )
        self._psql("select * from fleet")

        say("2. Insert a job graph through psql")
        click.secho(GRAPH.strip(), fg="cyan")
        self._psql(GRAPH, quiet=True)
        self._psql("select * from queue")

        say("3. Watch it run; kill -9 the runner that writes the report, cancel the crawl")
        killed = self._watch(db)

        say("4. What happened")
        for title, query, expected in POINTS:
            self._check(db, title, query, expected)
        self._check(
            db,
            f"A host lost: {killed} was killed in the middle of the report; another runner wrote it.",
            """
            select a.number, r.name as runner, a.outcome, a.evidence
            from attempts a join tasks t on t.id = a.task_id join runners r on r.id = a.runner_id
            where t.dedupe_key = 'report' order by a.number
            """,
            [
                (1, killed, "crashed", "its process or host is gone"),
                (2, next(name for name in ("workstation", "laptop") if name != killed), "completed", None),
            ],
        )
        self._check(
            db,
            "Nothing lost, nothing twice: every task ended once.",
            "select status, count(*) from tasks group by status order by status",
            [("completed", 9), ("cancelled", 1)],
        )
        if modelled:
            self._ask(db)
        else:
            click.echo("\n  No local model is installed here. To see one answer: make demo-local")

    def _start_model(self, db: Connection[DictRow]) -> bool:
        model = self._stack.enter_context(local.serve())
        click.echo(f"  the local model {model.model} answers at {model.base_url}")
        settings = {"base_url": model.base_url, "model": model.model, "max_tokens": 60, "temperature": 0}
        db.execute("update taskyard.providers set settings = %s where name = 'local'", (Jsonb(settings),))
        db.execute("update taskyard.agents set route = '{local}' where name in ('local', 'auto')")
        return True

    def _ask(self, db: Connection[DictRow]) -> None:
        say("5. A local model answers under a JSON schema, and chooses the agent of a task")
        click.secho(QUESTIONS.strip(), fg="cyan")
        self._psql(QUESTIONS, quiet=True)
        self._await(
            "the model has answered",
            lambda: (
                count(db, "select from tasks where dedupe_key = 'answer' and finished_at is not null") == 1
                and count(db, "select from tasks where dedupe_key = 'routed' and routed_by is not null") == 1
            ),
            60,
        )
        self._check(
            db,
            "The answer fits the schema, and its tokens were counted.",
            """
            select t.status, t.result ->> 'animal' in ('cat', 'dog') as fits,
                a.input_tokens > 0 and a.output_tokens > 0 as counted
            from tasks t join attempts a on a.task_id = t.id
            where t.dedupe_key = 'answer'
            """,
            [("completed", True, True)],
        )
        self._psql(
            "select t.result, a.model, a.input_tokens, a.output_tokens, a.finished_at - a.started_at as took"
            " from tasks t join attempts a on a.task_id = t.id where t.dedupe_key = 'answer'"
        )
        self._check(
            db,
            "The model chose one of the agents.",
            """
            select routed_by like 'model %' as by_model, exists (select from agents a where a.name = t.agent) as known
            from tasks t where dedupe_key = 'routed'
            """,
            [(True, True)],
        )
        self._psql("select agent, routed_by from tasks where dedupe_key = 'routed'")

    def _start_runner(self, name: str) -> None:
        log = (self._home / f"{name}.log").open("wb")
        command = [str(Path(sys.executable).with_name("taskyard")), "runner", "--name", name, "--slots", "4"]
        process = subprocess.Popen(
            command, env={**os.environ, "TASKYARD_DSN": self._dsn}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        log.close()
        self._runners[name] = process
        self._stack.callback(end, process)

    def _watch(self, db: Connection[DictRow]) -> str:
        started = time.monotonic()
        told: set[tuple[Any, ...]] = set()
        killed = ""
        cancelled = False
        while True:
            for row in db.execute(
                "select t.dedupe_key, h.what, h.who, h.attempt_id"
                " from task_history h join tasks t on t.id = h.task_id where h.what <> 'created' order by h.at"
            ).fetchall():
                key = (row["dedupe_key"], row["what"], row["attempt_id"])
                if key not in told:
                    told.add(key)
                    click.echo(
                        f"  {time.monotonic() - started:5.1f} s  {row['who']:<12} {row['dedupe_key']:<9} {row['what']}"
                    )
            running = {
                row["dedupe_key"]: row["name"]
                for row in db.execute(
                    "select t.dedupe_key, r.name from attempts a join tasks t on t.id = a.task_id"
                    " join runners r on r.id = a.runner_id where a.outcome is null and a.progress_at is null"
                    " and a.started_at < now() - interval '1.5 seconds'"
                )
            }
            pages_left = count(db, "select from tasks where scope = 'press' and finished_at is null")
            if not killed and "report" in running and not pages_left:
                killed = running["report"]
                process = self._runners[killed]
                click.secho(
                    f"  {time.monotonic() - started:5.1f} s  kill -9 {process.pid}   ({killed})", fg="red", bold=True
                )
                process.kill()
                process.wait()
            if killed and not cancelled and running.get("crawl", killed) != killed:
                cancelled = True
                click.secho(
                    f"  {time.monotonic() - started:5.1f} s  select cancel_task(..., 'changed my mind');   (crawl)",
                    fg="red",
                    bold=True,
                )
                self._psql(
                    "select cancel_task(id, 'changed my mind') from tasks where dedupe_key = 'crawl'", quiet=True
                )
            if count(db, "select from tasks where finished_at is null") == 0:
                return killed
            if time.monotonic() - started > DEADLINE:
                self._psql("select id, dedupe_key, status, explain_task(id) from tasks where finished_at is null")
                raise NotAsTold(f"not everything had ended after {DEADLINE:.0f} seconds")
            time.sleep(0.1)

    def _psql(self, statements: str, quiet: bool = False) -> None:
        command = self._cluster.psql_command(["--no-psqlrc", "--set=ON_ERROR_STOP=1", "--pset=footer=off", "--quiet"])
        if not quiet:
            shown = dedent(statements).strip().replace("\n", "\n  yard-> ")
            click.secho(f"  yard=> {shown};", fg="cyan")
        done = subprocess.run(command, input=statements, text=True, capture_output=True, timeout=30, check=False)
        if done.returncode != 0:
            raise NotAsTold(f"psql said: {done.stderr.strip()}")
        if not quiet:
            click.echo("\n".join(f"  {line}" for line in done.stdout.rstrip().split("\n")))

    def _await(self, what: str, condition: Callable[[], bool], seconds: int = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise NotAsTold(f"waited {seconds} seconds in vain: {what}")
            time.sleep(0.05)

    def _check(
        self, db: Connection[DictRow], title: str, query: LiteralString, expected: list[tuple[Any, ...]]
    ) -> None:
        found = [tuple(row.values()) for row in db.execute(query)]
        click.echo()
        click.secho(f"  {title}", bold=True)
        self._psql(query)
        if found != expected:
            raise NotAsTold(f"expected {expected}, found {found}")


def say(title: str) -> None:
    click.echo()
    click.secho(title, bold=True, fg="green")


def count(db: Connection[DictRow], query: LiteralString) -> int:
    return len(db.execute(query).fetchall())


def end(process: subprocess.Popen[bytes]) -> None:
    """Let it end by itself; it has nothing to do any more."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> int:
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            Demo(stack).run()
    except NotAsTold as error:
        click.secho(f"\nNot as told: {error}", fg="red", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    click.secho(
        f"\nAll as told, in {time.monotonic() - started:.0f} seconds. Nothing is left running.", fg="green", bold=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
