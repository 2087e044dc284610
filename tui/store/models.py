"""What the screens show, as values. Times are aware datetimes of the database's clock; money is in dollars."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

STATUSES = ("blocked", "scheduled", "queued", "running", "waiting", "completed", "failed", "cancelled")
OPEN = STATUSES[:5]
ENDED = STATUSES[5:]


@dataclass(frozen=True, slots=True)
class Rights:
    """What the login may do here, by the roles that it is a member of."""

    login: str
    submit: bool
    administer: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks a list shows. `text` is looked for in prompts; `family` shows one task's tree only."""

    statuses: tuple[str, ...] = ()
    text: str = ""
    agent: str | None = None
    scope: str | None = None
    family: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A task in a list. `depth` counts from the top of its tree; `asks`: an open question stands in the inbox."""

    id: int
    status: str
    agent: str
    scope: str
    priority: int
    prompt: str
    error: str | None
    doing: str | None
    since: datetime
    asks: bool
    children: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """Tasks by status, open questions, hot limits with the seconds until they end, dollars spent today."""

    now: datetime
    counts: dict[str, int]
    questions: int
    hot: list[tuple[str, float]]
    spent: Decimal
    runners: int
    silent: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claim of a task, with what is known of its proof and its work."""

    id: int
    number: int
    runner: str | None
    provider: str
    model: str | None
    outcome: str | None
    exit_code: int | None
    evidence: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost: Decimal | None
    turns: int | None
    sandbox: str | None
    branch: str | None
    commit: str | None
    progress: float | None
    doing: str | None
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a transcript."""

    seq: int
    at: datetime
    kind: str
    body: str
    data: Any


@dataclass(frozen=True, slots=True)
class Proof:
    """What the command that proves the work said."""

    number: int
    command: str
    passed: bool
    exit_code: int | None
    output: str
    duration: timedelta
    commit: str | None


@dataclass(frozen=True, slots=True)
class Handoff:
    """A packet by which one agent handed its task to another."""

    source: str
    target: str
    reason: str
    summary: str | None
    summary_by: str | None
    pending: list[str]
    artifacts: list[str]
    from_task: int
    to_task: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State that an agent saved."""

    attempt: int
    version: int
    status: str
    progress: float
    data: Any
    at: datetime


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that an attempt left."""

    attempt: int
    path: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Detail:
    """All of one task that its screen shows but the transcript. `columns` are those of the table tasks."""

    columns: dict[str, Any]
    explained: list[str]
    attempts: list[Attempt]
    proofs: list[Proof]
    handoffs: list[Handoff]
    checkpoint: Checkpoint | None
    artifacts: list[Artifact]
    questions: list["Question"]
    children: dict[str, int]

    @property
    def id(self) -> int:
        return self.columns["id"]

    @property
    def status(self) -> str:
        return self.columns["status"]


@dataclass(frozen=True, slots=True)
class Question:
    """What waits for a person. `kind`: permission, question or budget; `left`: until silence means no."""

    id: int
    kind: str
    task: int | None
    scope: str
    question: str
    wanted: list[str]
    left: timedelta | None
    prompt: str | None
    agent: str | None


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner: what it runs of how many slots, and what is wrong with it."""

    name: str
    host: str
    busy: int
    slots: int
    labels: list[str]
    last_seen: datetime
    draining: bool
    sandbox: str
    trouble: str | None
    providers: list[str]


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider: where it is ready, and what is paused."""

    name: str
    adapter: str
    ready: list[str]
    troubled: list[str]
    paused: str | None
    running: int


@dataclass(frozen=True, slots=True)
class Limit:
    """A window of an account's limit. `hot`: nothing is claimed until then; `guess`: nobody said when it resets."""

    provider: str
    account: str
    what: str
    used: float | None
    until: datetime | None
    guess: bool
    hot: bool
    tried: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """Runners, providers and limits at one moment."""

    now: datetime
    runners: list[Runner]
    providers: list[Provider]
    limits: list[Limit]


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope and what holds in it; `path` leads to it from the top."""

    name: str
    path: list[str]
    permissions: list[str]
    paths: list[str] | None
    agents: list[str] | None
    providers: list[str] | None
    hosts: list[str] | None
    busy: int
    most: int | None
    paused: str | None
    budgets: list["Budget"] = field(default_factory=list["Budget"])


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget and what is used of it, in its own measure: usd, tokens or seconds."""

    scope: str
    measure: str
    period: str
    amount: Decimal
    used: Decimal


@dataclass(frozen=True, slots=True)
class Day:
    """What was spent on a day (or within an hour) by one provider."""

    start: datetime
    provider: str
    cost: float
    tokens: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Template:
    """A task to begin from: `task` has columns of the table tasks, `variables` are the {{names}} in its texts."""

    task: dict[str, Any]
    variables: list[str]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a new task may name: agents with their descriptions, scopes, templates."""

    agents: list[tuple[str, str]]
    scopes: list[str]
    templates: dict[str, Template]


@dataclass(frozen=True, slots=True)
class Change:
    """What was heard: `ids` of tasks that changed; none: nobody knows which."""

    ids: frozenset[int]
