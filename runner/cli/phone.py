"""phone-role: a login for a telephone, which puts tasks into one scope and decides there, and nothing else."""

import secrets
from importlib.resources import files

import click

from .. import actions
from .options import State, json_option
from .output import say, say_json


@click.command("phone-role", short_help="A login for psql on a phone.")
@click.argument("name", metavar="NAME")
@click.option("--scope", required=True, metavar="SCOPE", help="Where it works: this scope and all below it.")
@click.option("--new-password", is_flag=True, help="For a login that exists: only a new password.")
@json_option
@click.pass_obj
def phone_role(state: State, name: str, scope: str, new_password: bool) -> None:
    """Make a login that inserts tasks and decides in one scope, and print how to set psql up in Termux.

    Lost the phone? drop owned by NAME; drop role NAME; nothing else has to change.
    """
    password = secrets.token_urlsafe(18)
    with state.connect() as yard:
        actions.make_phone_role(yard, name, scope, password, new_password)
        host, port, database = yard.info.host, yard.info.port, yard.info.dbname
    here = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    service = {"host": "127.0.0.1" if here else host, "port": port, "dbname": database, "user": name}
    if state.json:
        say_json({**service, "password": password, "scope": scope})
        return
    if new_password:
        say(f"{name} has a new password. On the phone, in ~/.pgpass, replace the last part of its line:")
        say(password)
        return
    say(f"{name} works in scope {scope}. On the phone, in Termux, paste this (it holds the password: not into a chat):")
    say()
    say("pkg install -y postgresql openssh" if here else "pkg install -y postgresql")
    say("cat >> ~/.pg_service.conf <<'END'")
    say("[yard]\n" + "\n".join(f"{key}={text}" for key, text in service.items()))
    say("END")
    line = ":".join(_escaped(str(part)) for part in (*service.values(), password))
    say(f"(umask 077; echo '{line}' >> ~/.pgpass)")
    say("cat > ~/.psqlrc <<'END'")
    say((files("taskyard.sql") / "psqlrc").read_text().rstrip())
    say("END")
    if here:
        say(f"ssh -f -N -L {port}:127.0.0.1:{port} YOU@THIS-HOST   # each time: only its host reaches it")
    say("psql service=yard")
    say()
    say("What to do there: docs/psql.md, or :help in psql.")


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace(":", "\\:")
