"""A yard with a little of everything, the same in every run: for pictures, and for snapshots of the screens."""

from datetime import UTC, timedelta

from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, value
from .yardwork import claim, end, insert

DIFF = """diff --git a/auth/login.py b/auth/login.py
--- a/auth/login.py
+++ b/auth/login.py
@@ -41,3 +41,4 @@ def refresh(session):
-    if session.expires < now():
+    # The clock of the server, not of the session: they differ by the skew.
+    if session.expires < session.server_now():
         return renew(session)
"""


def sample(yard: Yard) -> tuple[str, int]:
    """Fill the yard; returns a connection string under which time stands still, and the id of the task to look into."""
    db = yard.connect()
    clock = Clock(yard, db)
    start = clock.now.astimezone(UTC).replace(hour=14, minute=0, second=30, microsecond=0)
    clock.set(start)
    for statement in SET_UP:
        db.execute(statement)
    box = _runner(db, "gpu-box", 4, ["claude", "codex", "local"])
    laptop = _runner(db, "laptop", 2, ["claude", "gemini"])

    clock.advance(timedelta(minutes=5))
    for prompt, agent, scope, outcome, cost in DONE:
        insert(db, prompt, agent=agent, scope=scope, priority=500, max_attempts=1)
        (row,) = claim(db, laptop if agent == "gemini" else box, 1)
        clock.advance(timedelta(minutes=7))
        usage = {"input_tokens": 41_000, "output_tokens": 2_300, "cost_usd": cost} if cost else {}
        end(
            db,
            row["attempt_id"],
            outcome,
            error="2 tests fail" if outcome == "failed" else None,
            result=Jsonb("Done."),
            usage=Jsonb(usage),
        )

    task = insert(db, "Fix the flaky login test and say what was wrong", agent="claude", scope="web", priority=50, verify="pytest tests/test_login.py")  # fmt: skip
    (row,) = claim(db, box, 1)
    attempt = row["attempt_id"]
    child = value(db, "select (spawn_task(%s, %s) ->> 'task')::bigint", attempt, Jsonb({"prompt": "Review the fix of the login test", "agent": "codex"}))  # fmt: skip
    db.execute("select append_transcript(%s, %s)", [attempt, Jsonb(TRANSCRIPT)])
    db.execute("select report_progress(%s, 0.6::real, 'waiting for the review')", [attempt])
    db.execute("select save_checkpoint(%s, %s)", [attempt, Jsonb({"status": "the fix is in", "progress": 0.6, "data": {"file": "auth/login.py"}})])  # fmt: skip
    db.execute("select add_artifact(%s, 'work.diff', %s, encode(sha256(%s), 'hex'), %s, 'diff')", [attempt, len(DIFF), DIFF.encode(), DIFF.encode()])  # fmt: skip
    db.execute("select report_verification(%s, false, 1, 'E   assert 401 == 200\n1 failed, 11 passed', '4 seconds')", [attempt])  # fmt: skip
    review = claim(db, box, 1)[0]
    assert review["task_id"] == child
    db.execute("select report_progress(%s, 0.2::real, 'reading auth/login.py')", [review["attempt_id"]])

    asking = insert(db, "Update the pinned versions", agent="claude", scope="web", priority=40)
    (row,) = claim(db, laptop, 1)
    assert row["task_id"] == asking
    db.execute("select request_permission(%s, '{network}', '{}', '{pypi.example}', 'to see which versions there are')", [row["attempt_id"]])  # fmt: skip
    end(db, row["attempt_id"], "waiting")
    clock.advance(timedelta(minutes=2))
    insert(db, "Which of the two designs do we take?", agent="claude", scope="web", priority=39)
    (row,) = claim(db, laptop, 1)
    db.execute("select ask_human(%s, 'Cookies or tokens for the session?')", [row["attempt_id"]])
    end(db, row["attempt_id"], "waiting")

    insert(db, "Summarise this week's commits", agent="local", scope="home", priority=30)
    claim(db, box, 1)
    first = insert(db, "Draft the release notes", agent="codex", scope="web")
    insert(db, "Publish the release notes", agent="shell", scope="web", depends_on=[first])
    insert(db, "Nightly dependency check", agent="shell", scope="home", run_at=clock.now + timedelta(hours=9))
    insert(db, "Translate the manual into German", agent="gemini", scope="home", priority=-5)
    cancelled = insert(db, "Try the other parser", agent="codex", scope="web")
    db.execute("select cancel_task(%s, 'not needed')", [cancelled])
    db.execute(
        "insert into provider_limits (provider, account, window_name, state, used_percent, resets_at, until, observed_at)"
        " values ('gemini', 'me@mail.example', 'daily', 'hot', 100, taskyard._now() + interval '5 h 12 min 30 s', taskyard._now() + interval '5 h 12 min 30 s', taskyard._now()),"
        " ('claude', 'me@mail.example', 'five_hour', 'open', 64, taskyard._now() + interval '2 h 40 min 30 s', null, taskyard._now())"
    )
    clock.advance(timedelta(minutes=4))
    db.execute("update runners set last_seen = taskyard._now()")
    return make_conninfo(yard.dsn, options=f"-c taskyard.test_now={clock.now.isoformat()} -c timezone=UTC"), task


SET_UP = (
    "insert into scopes (name, parent, max_concurrency, weight) values ('web', 'default', 4, 2), ('home', 'default', null, 1)",
    "insert into scopes (name, parent, may_network, allowed_paths) values ('web/app', 'web', false, '{/srv/app}')",
    "insert into budgets (scope, measure, period, amount) values ('web', 'usd', 'day', 20), ('home', 'tokens', 'month', 2000000)",
    'insert into templates (name, task) values (\'review\', \'{"prompt": "Review the branch {{branch}}.", "agent": "codex"}\')',
)
DONE = (
    ("Write tests for the parser", "claude", "web", "completed", 1.42),
    ("Port the build to the new runner", "codex", "web", "completed", 0.88),
    ("Make the docs build without warnings", "claude", "web", "failed", 0.31),
    ("Tidy the photo folder", "local", "home", "completed", None),
    ("Explain the failing deploy", "gemini", "home", "completed", 0.06),
)
TRANSCRIPT = [
    {"seq": 1, "kind": "text", "body": "I will look at the test first.\n\n- which **clock** does it use?\n- does it fail alone?"},
    {"seq": 2, "kind": "tool_call", "body": "Bash: pytest tests/test_login.py", "data": {"command": "pytest tests/test_login.py"}},
    {"seq": 3, "kind": "tool_result", "body": "1 failed, 11 passed in 2.31s"},
    {"seq": 4, "kind": "text", "body": "It compares the session's clock with ours. I take the server's, and ask for a review."},
    {"seq": 5, "kind": "tool_call", "body": "taskyard: spawn_task", "data": {"agent": "codex"}},
]  # fmt: skip


def _runner(db: Connection[DictRow], name: str, slots: int, providers: list[str]) -> int:
    offers = [{"provider": provider, "account": "me@mail.example" if provider != "local" else "", "state": "ready"} for provider in [*providers, "command"]]  # fmt: skip
    return value(db, "select register_runner(%s, %s, '{}', %s)", name, slots, Jsonb(offers))
