"""checkpoint and handoff: what agents saved or passed on, as files that another yard can take."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from .. import actions, queries
from ..errors import TaskyardError
from .options import State, json_option, task_id
from .output import clean, say, say_json

LARGEST = 8 << 20  # bytes of a document

folder = click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder to write to; the current one otherwise.",
)
file = click.argument("file", type=click.File("rb"))


@click.group(short_help="State that agents saved, as files.")
def checkpoint() -> None:
    """Write a task's last checkpoint into a file, or give one to another task to go on from."""


@checkpoint.command("export", short_help="Write it into a file.")
@task_id
@folder
@json_option
@click.pass_obj
def export_checkpoint(state: State, task_id: int, folder: Path) -> None:
    """Write the task's last checkpoint into a file named by task and time."""
    with state.connect() as yard:
        document = queries.export_checkpoint(yard, task_id)
    _write(state, document, folder, "checkpoint")


@checkpoint.command("import", short_help="Give it to a task.")
@task_id
@file
@json_option
@click.pass_obj
def import_checkpoint(state: State, task_id: int, file: IO[bytes]) -> None:
    """Give a task that does not run the state in FILE; its next attempt finds it."""
    document = _read(file)
    with state.connect() as yard:
        version = actions.import_checkpoint(yard, task_id, document)
    if state.json:
        say_json({"task": task_id, "version": version})
    else:
        say(f"task {task_id} has it as version {version}")


@click.group(short_help="What one agent passed on to another, as files.")
def handoff() -> None:
    """Write a handoff into a file, or have it gone on with in this yard."""


@handoff.command("export", short_help="Write it into a file.")
@click.argument("number", metavar="HANDOFF", type=int)
@folder
@json_option
@click.pass_obj
def export_handoff(state: State, number: int, folder: Path) -> None:
    """Write a handoff (its id is in the table handoffs) into a file named by task and time."""
    with state.connect() as yard:
        document = queries.export_handoff(yard, number)
    _write(state, document, folder, "handoff")


@handoff.command("import", short_help="Go on with it here.")
@file
@click.option("--scope", "-s", default="default", show_default=True, help="Of the new task.")
@json_option
@click.pass_obj
def import_handoff(state: State, file: IO[bytes], scope: str) -> None:
    """Create a task that goes on with the handoff in FILE."""
    document = _read(file)
    with state.connect() as yard:
        task = actions.import_handoff(yard, document, scope)
    if state.json:
        say_json({"id": task})
    else:
        say(str(task))


def _write(state: State, document: dict[str, Any], folder: Path, kind: str) -> None:
    at = datetime.fromisoformat(document["created_at"]).astimezone(UTC)
    path = folder / f"task-{document['task']}-{at:%Y%m%dT%H%M%SZ}.{kind}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if state.json:
        say_json({"file": str(path)})
    else:
        say(clean(str(path)))


def _read(file: IO[bytes]) -> dict[str, Any]:
    given = file.read(LARGEST + 1)
    try:
        if len(given) > LARGEST:
            raise ValueError("it is larger than 8 MB")
        document = json.loads(given)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise TaskyardError(
            f"This file is no exported document: {error}.", "taskyard checkpoint export makes one."
        ) from None
    return document  # pyright: ignore[reportUnknownVariableType]
