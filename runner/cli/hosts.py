"""invite, join, leave: more hosts for one yard."""

import re

import click

from .. import hosts
from ..connection import redacted
from ..joined import forget
from .options import State, json_option
from .output import say, say_json
from .runner import host_name


@click.command(short_help="A login for another host.")
@click.argument("name", metavar="NAME")
@click.option("--submit", "scope", metavar="SCOPE", help="People there also put in tasks: in this scope and below it.")
@json_option
@click.pass_obj
def invite(state: State, name: str, scope: str | None) -> None:
    """Make a login for another host, and print what to type there. It runs tasks, and reads no table.

    Lost the host? drop owned by NAME; drop role NAME; nothing else has to change.
    """
    database = state.database()
    with state.connect(database) as yard:
        dsn = hosts.invite(yard, name, scope, database.cluster)
    if state.json:
        say_json({"name": name, "dsn": dsn, "scope": scope})
        return
    say("On the other host, with taskyard installed (this holds a password, which join replaces):")
    say()
    say(f"taskyard join '{dsn}'")


@click.command(short_help="Make this host one of a yard.")
@click.argument("given", metavar="DSN")
@click.option("--name", help="Of the login that is made where DSN is an administrator's; default: this host's name.")
@click.option("--keep-password", is_flag=True, help="Do not replace the password: a pooler may have a list of its own.")
@json_option
@click.pass_obj
def join(state: State, given: str, name: str | None, keep_password: bool) -> None:
    """Make this host one of the yard at DSN, which `taskyard invite` on another host has printed.

    The password goes to a file that only you can read, and is replaced by one that nobody has seen. From then on every
    command here means that yard, where nothing else is said; end that with: taskyard leave
    """
    told = hosts.join(given, name or re.sub(r"[^a-z0-9_-]", "-", host_name().lower()), keep_password)
    state.dsn = told
    if state.json:
        say_json({"dsn": told})
        return
    say(f"This host has joined {redacted(told)}")
    say()
    from .doctor import report  # all adapters, for which no other command should wait

    report(state)
    say()
    say("Run tasks here with: taskyard runner")


@click.command(short_help="Undo join.")
@json_option
@click.pass_obj
def leave(state: State) -> None:
    """Forget the yard that this host has joined, and its password. The login stays, until an administrator drops it."""
    left = forget()
    if state.json:
        say_json({"left": left})
    else:
        say(f"This host has left {left}" if left else "This host had joined no yard.")
