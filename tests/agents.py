"""A yard whose runners have the vendors' real tools, in front of a stand-in for the vendors' APIs."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, value
from .fleet import Fleet, Runner, fleet_on, until
from .stand_in import Account, StandIn
from .vendor_tools import tool

# What holds for all three is tried with one of them in every run of the tests, and with the others in the slow one.
MOSTLY_CLAUDE = ["claude", *(pytest.param(name, marks=pytest.mark.slow) for name in ("codex", "gemini"))]
MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5.5", "gemini": "gemini-2.5-pro"}


@dataclass
class Agents:
    """One account per vendor; runners see the tools, made-up credentials, and nothing of this machine's."""

    sql: Connection[DictRow]
    fleet: Fleet
    folder: Path
    claude: Account
    codex: Account
    gemini: Account

    def account(self, name: str) -> Account:
        """The account with the vendor of that tool."""
        return {"claude": self.claude, "codex": self.codex, "gemini": self.gemini}[name]

    def start(self, name: str, *options: str, host: str = "here") -> Runner:
        """A runner that has asked its tools already. Those of one host share a folder."""
        home = self.folder / host
        home.mkdir(exist_ok=True)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TASKYARD_HOME": str(home),
            "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-made-up",
            "CODEX_STAND_IN_KEY": "sk-made-up",
            "GEMINI_API_KEY": "made-up",
        }
        runner = self.fleet.start(name, "--host", host, *options, env=env, bare=True)
        until(
            lambda: (
                value(
                    self.sql,
                    "select count(*) from runner_providers rp join runners r on r.id = rp.runner_id"
                    " where r.name = %s and r.gone_at is null and rp.provider in ('claude', 'codex', 'gemini') and rp.state = 'ready'",
                    name,
                )
                == 3
            ),
            60,
            "for the tools",
        )
        return runner

    def submit(self, prompt: str, agent: str, **columns: object) -> int:
        return value(
            self.sql,
            "insert into tasks (prompt, agent, provider, on_limit, output_schema, workspace)"
            " values (%s, %s, %s, %s, %s, %s) returning id",
            prompt,
            agent,
            columns.get("provider"),
            columns.get("on_limit", "switch"),
            columns.get("output_schema"),
            columns.get("workspace"),
        )


@contextmanager
def agents_on(yard: Yard, folder: Path) -> Generator[Agents]:
    with StandIn() as api, fleet_on(yard.dsn, folder) as fleet:
        sql = yard.connect()
        accounts = {name: api.account(name) for name in MODELS}
        settings = {
            # As with a login: the address goes in by the tool's own variables, so that the account is the login's.
            "claude": {"env": {"ANTHROPIC_BASE_URL": accounts["claude"].url}},
            "gemini": {"env": {"GOOGLE_GEMINI_BASE_URL": accounts["gemini"].url}},
            "codex": {
                "base_url": accounts["codex"].url + "/v1",
                "api_key_env": "CODEX_STAND_IN_KEY",
                "account": "codex-login",
            },
        }
        for name, model in MODELS.items():
            sql.execute(
                "update providers set settings = %s where name = %s",
                (Jsonb({**settings[name], "executable": str(tool(name)), "model": model}), name),
            )
        yield Agents(sql, fleet, folder, **accounts)
