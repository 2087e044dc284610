"""submit: one task from the command line."""

import json
import sys
from datetime import datetime, timedelta
from typing import IO, NoReturn

import click
from psycopg.types.json import Jsonb

from .. import actions, queries
from ..actions import Submission
from ..errors import TaskyardError
from .options import State, duration, id_list, json_option, moment
from .output import clean, indented, say, say_json
from .watch import await_ends, exit_code

LARGEST_PROMPT = 4 << 20  # bytes; checked again, for everyone, by the database


def read_prompt(argument: str | None, file: IO[bytes] | None) -> str:
    """The prompt from the argument, from standard input where that is "-", or from the file.

    Raises TaskyardError for what cannot be a prompt, before anything is sent.
    """
    if argument is not None and argument != "-":
        # Bytes that are not UTF-8 reach Python's argv as surrogates (PEP 383), and leave it as they came.
        given = argument.encode("utf-8", "surrogateescape")
    else:
        source = file or sys.stdin.buffer
        if file is None and sys.stdin.isatty():
            say("Type the prompt, and end it with Ctrl-D.", err=True)
        given = source.read(LARGEST_PROMPT + 1)
    if len(given) > LARGEST_PROMPT:
        raise TaskyardError(
            "The prompt is larger than 4 MB.",
            "Put large material into files of the workspace and name them in the prompt.",
            "TY001",
        )
    if (place := given.find(0)) >= 0:
        raise TaskyardError(
            f"The prompt holds a NUL byte (at byte {place}).", "Is it a text? PostgreSQL keeps none of these.", "TY001"
        )
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskyardError(
            f"The prompt is not valid UTF-8 (at byte {error.start}).",
            "Convert it, for example with: iconv -f latin1 -t utf-8",
            "TY001",
        ) from error


def document(context: click.Context, option: click.Parameter, given: str | None) -> Jsonb | None:
    """Callback of an option that takes a JSON document. Raises click's usage error."""
    if given is None:
        return None
    try:
        return Jsonb(json.loads(given, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"it is not JSON: {error}", context, option) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


@click.command(short_help="Put a task into the yard.")
@click.argument("prompt", required=False)
@click.option("--file", "file", type=click.File("rb", lazy=False), help="Read the prompt from a file.")
@click.option("--agent", "-a", help="Which kind of worker.")
@click.option("--scope", "-s", help="Project or team.")
@click.option("--priority", "-p", type=int, help="Higher runs first; -1000 to 1000.")
@click.option("--run-at", metavar="TIME", callback=moment, help="Not before: an ISO time, or a delay like 10m.")
@click.option(
    "--depends-on",
    "-d",
    metavar="IDS",
    multiple=True,
    callback=id_list,
    help="Tasks that must complete first.",
)
@click.option("--on-dependency-failure", metavar="fail|run", help="What follows when one of those fails.")
@click.option("--payload", metavar="JSON", callback=document, help="A JSON document that is handed to the agent.")
@click.option("--workspace", "-w", help="Directory on the runner's host.")
@click.option("--repository", metavar="DIRECTORY", help="Git repository on the runner's host: a branch of its own.")
@click.option("--base", metavar="BRANCH", help="What that branch starts from.")
@click.option("--push-to", metavar="REMOTE", help="Where it is pushed after success.")
@click.option("--requires", "-r", multiple=True, metavar="LABEL", help="Label that the runner must have. Repeatable.")
@click.option("--provider", help="Only this provider, whatever the agent's route says.")
@click.option("--model", "-m", help="Only this model.")
@click.option("--dedupe-key", help="Where a task has this key already, its id is printed and nothing is added.")
@click.option("--max-attempts", type=int, help="Attempts before it fails for good.")
@click.option("--timeout", metavar="DURATION", callback=duration, help="Wall clock of one attempt, like 10m or 1h30m.")
@click.option("--on-limit", metavar="POLICY", help='switch, wait, or "switch after 2 hours".')
@click.option("--output-schema", metavar="JSON", callback=document, help="JSON schema that the result has to fit.")
@click.option("--verify", help="Command that proves the work done.")
@click.option("--wait", is_flag=True, help="Wait for its end; exit code as of: taskyard wait")
@click.option("--quiet", "-q", is_flag=True, help="Print the id only.")
@json_option
@click.pass_obj
def submit(
    state: State,
    prompt: str | None,
    file: IO[bytes] | None,
    wait: bool,
    quiet: bool,
    depends_on: list[int],
    requires: tuple[str, ...],
    agent: str | None,
    scope: str | None,
    priority: int | None,
    run_at: datetime | timedelta | None,
    on_dependency_failure: str | None,
    payload: Jsonb | None,
    workspace: str | None,
    repository: str | None,
    base: str | None,
    push_to: str | None,
    provider: str | None,
    model: str | None,
    dedupe_key: str | None,
    max_attempts: int | None,
    timeout: timedelta | None,
    on_limit: str | None,
    output_schema: Jsonb | None,
    verify: str | None,
) -> None:
    """Put a task into the yard and print its id.

    PROMPT says what to do; - reads it from standard input.
    """
    if (prompt is None) == (file is None):
        raise click.UsageError("Give the prompt once: as an argument, as - for standard input, or with --file.")
    submission = Submission(
        read_prompt(prompt, file),
        agent=agent,
        scope=scope,
        priority=priority,
        run_at=run_at,
        depends_on=depends_on or None,
        payload=payload,
        workspace=workspace,
        repository=repository,
        base=base,
        push_to=push_to,
        requires=list(requires) or None,
        provider=provider,
        model=model,
        dedupe_key=dedupe_key,
        max_attempts=max_attempts,
        timeout=timeout,
        on_dependency_failure=on_dependency_failure,
        on_limit=on_limit,
        output_schema=output_schema,
        verify=verify,
    )
    talkative = sys.stdout.isatty() and not quiet and not state.json
    with state.connect() as yard:
        number = actions.submit_task(yard, submission)
        if talkative:
            say(f"Task {number}")
            # Standing queued for want of a route or a runner is what people meet first.
            for line in [] if wait else queries.explain_task(yard, number):
                say(f"  {clean(line)}")
        elif not state.json:
            say(str(number))
        elif not wait:
            say_json({"id": number, "status": queries.statuses(yard, [number]).get(number)})
    if wait:
        _wait(state, number, talkative)


def _wait(state: State, number: int, talkative: bool) -> None:
    ends, timed_out = await_ends(state, [number], None)
    end = ends[0]
    if state.json:
        say_json(end)
    elif end.status == "completed" and talkative and end.result is not None:
        text = end.result if isinstance(end.result, str) else json.dumps(end.result, ensure_ascii=False, indent=2)
        say(indented(text))
    elif end.status != "completed":
        say(
            f"Task {number} {'was cancelled' if end.status == 'cancelled' else 'failed'}: {clean(end.error or '')}",
            err=True,
        )
    raise click.exceptions.Exit(exit_code(ends, timed_out))
