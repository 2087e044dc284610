"""import-sqlite: the tasks of an older orchestrator, from its file."""

from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from .. import queries
from .options import State, json_option
from .output import clean, say, say_json, waiting

ENDS = ("queued", "completed", "failed", "cancelled")
SHOWN = 20  # rows of each kind of trouble; --json has them all


@click.command("import-sqlite", short_help="Bring in tasks from a SQLite file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would come, and what is not understood.")
@click.option("--table", default="tasks", show_default=True, help="The table with the tasks.")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Which column is what: prompt=ask. Repeatable."
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    metavar="WORD=STATUS",
    help="What a word means: paused=cancelled. Repeatable.",
)
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="Of times that name none.")
@click.option("--scope", default="default", show_default=True, help="Where they go.")
@click.option("--agent", default="default", show_default=True, help="Who gets tasks whose agent is not here.")
@click.option("--source", help="Under which name they are remembered, so that none comes twice; default: the file's.")
@json_option
@click.pass_obj
def import_sqlite(
    state: State,
    file: Path,
    dry_run: bool,
    table: str,
    columns: tuple[str, ...],
    statuses: tuple[str, ...],
    timezone: str,
    scope: str,
    agent: str,
    source: str | None,
) -> None:
    """Bring the tasks of an older orchestrator's SQLite file into the yard: all that are understood, or none at all.

    Begin with --dry-run. What is not understood is told, and kept in payload; a row of which the yard could do the
    wrong thing is left out, with a reason. Repeating it brings only what is new. Needs pgloader, and a login of
    taskyard_admin. More: docs/import.md
    """
    from ..importing.mapping import plan, understand
    from ..importing.source import open_source
    from ..importing.transfer import find_pgloader, transfer

    named, words = _pairs(columns, "--column"), _pairs(statuses, "--status")
    if wrong := [status for status in words.values() if status not in ("queued", "completed", "failed", "cancelled")]:
        raise click.BadParameter(
            f"{wrong[0]!r} is none of queued, completed, failed, cancelled.", param_hint="--status"
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise click.BadParameter(f"{timezone!r} is no time zone; write it like Europe/Berlin.") from None
    with state.connect() as yard:
        agents = [known["name"] for known in queries.agents(yard)]
        if agent not in agents:
            raise click.BadParameter(f"There is no agent {agent}; there are: {', '.join(agents)}", param_hint="--agent")
        with waiting("reading") as show, open_source(file, table) as opened:
            try:
                reading = plan(opened.columns, named, words, zone, agents, agent)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            tasks, report = understand(opened.rows(), reading)
            cleaned = opened.cleaned
            new = None
            if not dry_run:
                find_pgloader()
                show("importing")
                new = transfer(yard, tasks, source or file.name, scope)
    report.notes.update(
        {"texts with NULs, which were removed": cleaned.nuls, "texts that are no UTF-8, mended": cleaned.broken}
    )
    notes = {note: count for note, count in report.notes.most_common() if count}
    if state.json:
        say_json(
            {
                "rows": report.rows,
                "new": new,
                "statuses": dict(report.statuses),
                "columns": reading.columns,
                "kept_in_payload": report.kept,
                "understood_otherwise": notes,
                "left_out": [{"id": told, "reason": reason} for told, reason in report.refused],
            }
        )
        return
    say(
        f"{report.rows:,} rows: "
        + ", ".join(f"{count:,} {status}" for status, count in sorted(report.statuses.items()))
    )
    say("Read as: " + ", ".join(f"{ours} from {clean(theirs)}" for ours, theirs in reading.columns.items()))
    if report.kept:
        say("Kept in payload: " + ", ".join(map(clean, report.kept)))
    for note, count in notes.items():
        say(f"  {count:,} {clean(note)}")
    if report.refused:
        say(f"Left out: {len(report.refused):,}")
        for told, reason in report.refused[:SHOWN]:
            say(f"  row {clean(told[:40])}: {clean(reason)}")
        if len(report.refused) > SHOWN:
            say(f"  and {len(report.refused) - SHOWN:,} more; all of them: --json")
    if new is None:
        say("Nothing was imported: --dry-run.")
    else:
        say(f"Imported {new:,}; {len(tasks) - new:,} were here already.")


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    parts = [text.partition("=") for text in given]
    for left, equals, right in parts:
        if not (left and equals and right):
            raise click.BadParameter("Write it as NAME=VALUE.", param_hint=option)
    return {left.strip(): right.strip() for left, _, right in parts}
