"""schedule, schedules: tasks that come by themselves."""

from datetime import datetime, timedelta
from typing import IO, Any

import click

from .. import actions, queries
from .options import State, duration, json_option, moment
from .output import Column, clean, pairs, say, say_json, table, terminal_width
from .submit import read_prompt


def variables(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Callback of a repeatable option NAME=VALUE. Raises click's usage error."""
    told: dict[str, str] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{each!r} is not NAME=VALUE", context, option)
        told[name] = text
    return told


@click.command(short_help="Let a task come by itself.")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--cron", metavar="LINE", help='Five fields like "30 2 * * mon-fri", or @daily and the like.')
@click.option("--every", metavar="DURATION", callback=duration, help="Instead: an interval, like 6h.")
@click.option(
    "--at", metavar="TIME", callback=moment, help="Once, or the first time of --every: an ISO time, or a delay."
)
@click.option("--timezone", metavar="ZONE", help="In which that is meant, like Europe/Berlin.")
@click.option("--file", "file", type=click.File("rb", lazy=False), help="Read the prompt from a file.")
@click.option("--template", help="Make the tasks from this template.")
@click.option(
    "--set", "values", metavar="NAME=VALUE", multiple=True, callback=variables, help="Fills {{NAME}}. Repeatable."
)
@click.option("--agent", "-a", help="Which kind of worker.")
@click.option("--scope", "-s", help="Project or team.")
@click.option("--priority", "-p", type=int, help="Higher runs first; -1000 to 1000.")
@click.option(
    "--missed", type=click.Choice(["once", "all", "skip"]), help="What becomes of times when nobody was there."
)
@click.option("--overlap", type=click.Choice(["skip", "replace", "allow"]), help="When the last task is not over.")
@click.option("--off", is_flag=True, help="Hold it back.")
@click.option("--on", is_flag=True, help="Let it go on, from its next time on.")
@click.option("--run", is_flag=True, help="Create its task now, out of turn.")
@click.option("--remove", is_flag=True, help="Delete it. Its tasks stay.")
@json_option
@click.pass_obj
def schedule(
    state: State,
    name: str,
    prompt: str | None,
    cron: str | None,
    every: timedelta | None,
    at: datetime | timedelta | None,
    timezone: str | None,
    file: IO[bytes] | None,
    template: str | None,
    values: dict[str, str],
    agent: str | None,
    scope: str | None,
    priority: int | None,
    missed: str | None,
    overlap: str | None,
    off: bool,
    on: bool,
    run: bool,
    remove: bool,
) -> None:
    """Let a task come by itself: NAME says which schedule, PROMPT what to do (- reads it from standard input).

    A schedule that exists is changed in what is given.
    """
    if off + on + run + remove > 1:
        raise click.UsageError("One of --off, --on, --run and --remove at a time.")
    if cron is not None and (every is not None or at is not None):
        raise click.UsageError("--cron says it all: leave --every and --at out.")
    if prompt is not None and file is not None:
        raise click.UsageError("Give the prompt once.")
    task: dict[str, Any] = {"agent": agent, "priority": priority}
    if prompt is not None or file is not None:
        task["prompt"] = read_prompt(prompt, file)
    columns: dict[str, Any] = {
        "cron": cron,
        "every": every,
        "at": at,
        "timezone": timezone,
        "template": template,
        "variables": values or None,
        "task": {key: told for key, told in task.items() if told is not None} or None,
        "scope": scope,
        "missed": missed,
        "overlap": overlap,
        "enabled": True if on else False if off else None,
    }
    given = {key: told for key, told in columns.items() if told is not None}
    if (run or remove) and given:
        raise click.UsageError("--run and --remove go with nothing else.")
    with state.connect() as yard:
        if remove:
            actions.remove_schedule(yard, name)
            return _tell(state, f"Schedule {name} is gone.", {"name": name, "removed": True})
        if run:
            number = actions.run_schedule(yard, name)
            return _tell(state, f"Task {number}", {"id": number})
        found = actions.write_schedule(yard, name, given)
    if state.json:
        say_json(found)
    else:
        say(
            "\n".join(
                pairs([(key, clean(str(told))) for key, told in found.items() if told is not None], terminal_width())
            )
        )
    return None


def _tell(state: State, said: str, document: dict[str, Any]) -> None:
    if state.json:
        say_json(document)
    else:
        say(said)


@click.command(short_help="What comes by itself, soonest first.")
@json_option
@click.pass_obj
def schedules(state: State) -> None:
    """List the schedules, and how the last task of each went."""
    with state.connect() as yard:
        found = queries.schedules(yard)
    if state.json:
        say_json(found)
    elif not found:
        say("Nothing comes by itself. Begin with: taskyard schedule --help")
    else:
        columns = [Column("schedule", 20), Column("next", 5), Column("when", 24), Column("last")]
        rows = [[row["name"], row["next"], clean(row["timing"]), clean(row["last"] or "")] for row in found]
        say("\n".join(table(columns, rows, terminal_width())))
