"""The vendors' own tools behind the gateway: they hold a placeholder, and do not notice."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskyard.runner.adapters.base import Upstream
from taskyard.runner.sandbox.gateway import Gateway
from tests.jail_servers import serving
from tests.stand_in import Account, StandIn, rate_limited, text
from tests.test_stand_in import KEYS, Desk, final_text
from tests.vendor_tools import tool

KEY = "sk-the-real-one"
BEARER = {"Authorization": f"Bearer {KEY}"}
AS_THE_VENDOR_WANTS_IT = {
    "claude": {"x-api-key": KEY},
    "codex": BEARER,
    "gemini": {"x-goog-api-key": KEY},
    "opencode": BEARER,
}


@pytest.fixture
def vendor() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.mark.parametrize(
    "name", ["claude", "codex", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemini", "opencode"))]
)
def test_a_tool_works_with_a_placeholder_and_the_key_is_nowhere_near_it(
    name: str, tmp_path: Path, vendor: StandIn
) -> None:
    account = vendor.account("a").script(text("hello from the other side"))
    desk = Desk(tmp_path)
    with serving(Gateway(Upstream(account.url, AS_THE_VENDOR_WANTS_IT[name]))) as port:
        ran = desk.run(name, Account("through the gateway", f"http://127.0.0.1:{port}"), "say hello")
    assert (ran.code, final_text(name, ran)) == (0, "hello from the other side")
    [request] = account.requests
    assert request.key == KEY and not any(KEYS[name] in value for value in request.headers.values())
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert written and not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in str(ran.events) and not vendor.strays


def test_a_tool_sees_the_vendors_refusal_and_when_to_come_back(tmp_path: Path, vendor: StandIn) -> None:
    account = vendor.account("a").limit(rate_limited(retry_after=61))
    with serving(Gateway(Upstream(account.url, AS_THE_VENDOR_WANTS_IT["claude"]))) as port:
        ran = Desk(tmp_path).run("claude", Account("through the gateway", f"http://127.0.0.1:{port}"), "say hello")
    assert (ran.code, ran.last("result")["api_error_status"], len(account.requests)) == (1, 429, 1)


def test_codex_gives_up_websockets_at_the_first_refusal(tmp_path: Path, vendor: StandIn) -> None:
    account = vendor.account("a").script(text("hello from the other side"))
    with serving(Gateway(Upstream(account.url, BEARER))) as port:
        # The provider that is built in tries one before each request.
        command = [tool("codex"), "exec", "--json", "--skip-git-repo-check", "-m", "gpt-5.5"]
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CODEX_HOME": str(tmp_path),
            "CODEX_API_KEY": "placeholder",
        }
        ran = subprocess.run(
            [*command, "-c", f'openai_base_url="http://127.0.0.1:{port}/v1"', "-"],
            input="say hello", text=True, capture_output=True, cwd=tmp_path, env=environ, timeout=90,
        )  # fmt: skip
    assert ran.returncode == 0 and "hello from the other side" in ran.stdout
    assert ran.stderr.count("failed to connect to Responses WebSocket") == 1
    assert [request.key for request in account.requests] == [KEY]
