"""The shipped llama-swap.yaml does what it says, and the adapter's child keeps the rules of a client of llama-swap.

llama-swap is a double here that starts real processes (see llama_swap/); where LLAMA_SWAP_BIN names the original, all tests
that are marked for it run against that too.
"""

import json
import re
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters.openai import OpenAI
from taskyard.runner.verbs import Usage

from .llama_swap.chats import Running, chat, claim
from .llama_swap.config import ConfigError, load
from .llama_swap.site import SHIPPED, Program, Site, programs, wait_until

MakeSite = Callable[..., Site]

TWO_MODELS = """
healthCheckTimeout: 15
{top}
models:
  one:
    cmd: ${{env.LLAMA_SERVER}} --port ${{PORT}} --alias ${{MODEL_ID}} --model ${{env.MODELS_DIR}}/one.gguf
    proxy: http://127.0.0.1:${{PORT}}
    {one}
  two:
    cmd: ${{env.LLAMA_SERVER}} --port ${{PORT}} --alias ${{MODEL_ID}} --model ${{env.MODELS_DIR}}/two.gguf
    proxy: http://127.0.0.1:${{PORT}}
routing:
  router:
    use: group
    settings:
      groups:
        first: {{{first} members: [one]}}
        second: {{exclusive: false, members: [two]}}
"""


def two_models(top: str = "", one: str = "", first: str = "exclusive: false,") -> str:
    return TWO_MODELS.format(top=top, one=one, first=first)


@pytest.fixture
def double(tmp_path: Path) -> Generator[Site]:
    """The double, for what the original cannot be made to do in reasonable time."""
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture(params=programs())
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Site]:
    """The double, and the original where it is at hand."""
    program: Program = request.param
    site = Site(tmp_path, program)
    yield site
    site.close()


def background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start it in a thread; the function returned waits for its result."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def result() -> Any:
        thread.join(30)
        return found[0]

    return result


# ---- the shipped file


def test_the_sums_in_the_shipped_file_are_right() -> None:
    text = SHIPPED.read_text()
    sums = re.findall(r"#\s+([\d.]+) \+ +(\d+) x ([\d.]+) KiB \w+ +([\d.]+) \+ 0\.9 = +([\d.]+)", text)
    table = re.findall(r"([\d.]+) +(\d+) x ([\d.]+) KiB \w+ +=? +([\d.]+) +0\.9 +([\d.]+)", text)
    assert (len(table), len(sums)) == (3, text.count("+ 0.9 ="))
    for file, tokens, kib, context, total in table + sums:
        assert int(tokens) * float(kib) / 2**20 == pytest.approx(float(context), abs=0.051)
        assert float(file) + float(context) + 0.9 == pytest.approx(float(total), abs=0.11)


def test_the_shipped_file_needs_both_variables(tmp_path: Path) -> None:
    for missing in ("LLAMA_SERVER", "MODELS_DIR"):
        environ = {"LLAMA_SERVER": "llama-server", "MODELS_DIR": str(tmp_path)}
        del environ[missing]
        with pytest.raises(ConfigError, match=missing):
            load(SHIPPED, environ)


def test_the_shipped_file_passes_each_model_the_options_it_means(tmp_path: Path) -> None:
    models = load(SHIPPED, {"LLAMA_SERVER": "/bin/llama-server", "MODELS_DIR": "/m"}).models
    assert models["coder"].argv == (
        *("/bin/llama-server", "--host", "127.0.0.1", "--port", "10001", "--alias", "coder"),
        *("--n-gpu-layers", "99", "--flash-attn", "on", "--offline"),
        *("--model", "/m/Qwen2.5-Coder-32B-Instruct-Q4_K_M.gguf", "--ctx-size", "16384"),
        *("--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--parallel", "1"),
    )
    assert [model.argv[4] for model in models.values()] == ["10001", "10002", "10003"]
    assert [model.ttl for model in models.values()] == [300, 0, 300]


def test_the_orchestrator_stays_while_coder_and_reasoning_take_turns(site: Site) -> None:
    site.start()
    wait_until(lambda: site.running() == {"orchestrator": "ready"})  # by itself
    for model, others in [("coder", "coder"), ("reasoning", "reasoning"), ("router", "reasoning"), ("coder", "coder")]:
        assert site.ask(model) == 200
        assert site.running() == {"orchestrator": "ready", others: "ready"}
    assert {name: site.starts(name) for name in ("orchestrator", "coder", "reasoning")} == {
        "orchestrator": 1,
        "coder": 2,
        "reasoning": 1,
    }


def test_the_orchestrator_answers_to_its_aliases(site: Site) -> None:
    base_url = site.start()
    for name in ("orchestrator", "gpt-4o-mini", "router"):
        assert chat(claim(base_url, model=name)).ending.result == "Yes."
    assert [request["model"] for request in site.requests("orchestrator")] == ["orchestrator", "gpt-4o-mini", "router"]


def test_the_runner_offers_all_names_and_knows_what_is_in_memory(site: Site) -> None:
    settings = {"base_url": site.start()}
    offer = OpenAI().probe(settings, {})
    assert offer.models == ["coder", "gpt-4o-mini", "orchestrator", "reasoning", "router"]
    assert site.ask("reasoning") == 200
    wait_until(lambda: site.running().get("orchestrator") == "ready")
    assert OpenAI().loaded(settings, {}) == ["gpt-4o-mini", "orchestrator", "reasoning", "router"]


# ---- what the double has in common with the original


def test_a_group_that_does_not_say_exclusive_false_unloads_the_others(site: Site) -> None:
    site.start(two_models(first=""))
    assert (site.ask("two"), site.ask("one")) == (200, 200)
    assert site.running() == {"one": "ready"}


def test_a_busy_model_is_never_cut_off_and_others_pass_meanwhile(site: Site) -> None:
    gate = site.folder / "gate"
    base_url = site.start()
    site.script("coder", answer="All of it.", gate=str(gate))
    busy = Running(claim(base_url))
    wait_until(lambda: len(site.requests("coder")) == 1)
    waiting = background(lambda: site.ask("reasoning"))
    assert site.ask("orchestrator") == 200
    assert site.starts("reasoning") == 0
    gate.touch()
    assert busy.end().ending.result == "All of it."
    assert waiting() == 200
    assert "coder" not in site.running()


def test_a_model_is_unloaded_after_its_time(site: Site) -> None:
    site.start(two_models(one="ttl: 1"))
    assert (site.ask("one"), site.ask("two")) == (200, 200)
    wait_until(lambda: site.running() == {"two": "ready"})


def test_a_model_is_unloaded_on_request(site: Site) -> None:
    site.start()
    assert site.ask("coder") == 200
    assert site.post("/api/models/unload/coder")[0] == 200
    wait_until(lambda: "coder" not in site.running())
    assert site.post("/api/models/unload/nope")[0] == 404


def test_the_words_of_refusals_are_those_of_the_original(site: Site) -> None:
    site.start()
    plain = {"Content-Type": "application/x-www-form-urlencoded"}
    cases: list[tuple[object, dict[str, str], str]] = [
        ({"model": "coder"}, plain, "no model id could be identified"),
        ({"messages": []}, {}, "no model id could be identified"),
        ({"model": "nope"}, {}, "no router for requested model"),
    ]
    for body, headers, says in cases:
        status, text, _ = site.post("/v1/chat/completions", body, headers)
        assert (status, json.loads(text)["src"]) == (404, "llama-swap")
        assert says in text
    assert site.get("/nowhere")[:2] == (404, "404 page not found")
    assert site.get("/health")[:2] == (200, "OK")


def test_one_request_too_many_is_429_with_the_time_to_wait(site: Site) -> None:
    gate = site.folder / "gate"
    site.start(two_models(one="concurrencyLimit: 1"))
    site.script("one", gate=str(gate))
    first = background(lambda: site.ask("one"))
    wait_until(lambda: len(site.requests("one")) == 1)
    status, body, headers = site.post("/v1/chat/completions", {"model": "one", "messages": []})
    gate.touch()
    assert (status, headers["Retry-After"]) == (429, "1")
    assert json.loads(body)["error"]["code"] == "concurrency_limit"
    assert first() == 200


def test_a_model_reached_by_its_own_path_is_loaded(site: Site) -> None:
    site.start()
    assert site.get("/upstream/coder/health")[0] == 200
    assert site.running()["coder"] == "ready"
    assert site.get("/upstream/nope/health")[0] == 404


# ---- the rules of a client


def test_an_answer_is_told_with_its_tokens_and_without_its_thoughts(site: Site) -> None:
    base_url = site.start()
    site.script("coder", thoughts="Hm.", answer="Yes, blue.\u2028Mostly.", usage=[12, 5, 4])
    told = chat(claim(base_url, system_prompt="Be brief."))
    assert (told.ending.outcome, told.ending.result) == ("completed", "Yes, blue.\u2028Mostly.")
    assert told.ending.usage == Usage(12, 5, 4, turns=1, model="coder")
    assert (told.said("text"), told.said("thinking")) == ("Yes, blue.\u2028Mostly.", "Hm.")
    [request] = site.requests("coder")
    assert request["stream"] is True
    assert [message["role"] for message in request["messages"]] == ["system", "user"]


def test_a_request_waits_for_a_model_that_loads(double: Site) -> None:
    base_url = double.start()
    double.script("coder", hang=True)
    waiting = Running(claim(base_url))
    wait_until(lambda: double.running().get("coder") == "starting")
    assert "coder" in (OpenAI().loaded({"base_url": base_url}, {}) or [])
    double.script("coder", answer="Here I am.")
    told = waiting.end()
    assert told.ending.result == "Here I am."
    assert told.said("error") == ""


def test_too_many_requests_are_repeated_as_the_server_says(site: Site) -> None:
    gate = site.folder / "gate"
    base_url = site.start(two_models(one="concurrencyLimit: 1"))
    site.script("one", gate=str(gate))
    first = Running(claim(base_url, model="one"))
    wait_until(lambda: len(site.requests("one")) == 1)
    second = Running(claim(base_url, model="one"))
    assert second.process.stdout is not None
    refused = json.loads(second.process.stdout.readline())
    assert (refused["type"], refused["wait"]) == ("refused", 1.0)
    gate.touch()
    assert first.end().ending.outcome == "completed"
    assert second.end().ending.outcome == "completed"
    assert len(site.requests("one")) == 2


def test_too_many_requests_for_too_long_are_a_limit_of_that_model(site: Site) -> None:
    gate = site.folder / "gate"
    base_url = site.start(two_models(one="concurrencyLimit: 1"))
    site.script("one", gate=str(gate))
    first = Running(claim(base_url, model="one"))
    wait_until(lambda: len(site.requests("one")) == 1)
    told = chat(claim(base_url, {"retries": 1}, model="one"))
    gate.touch()
    first.end()
    assert told.ending.outcome == "rate_limited"
    assert "asked again after 1 s" in told.said("error")
    window = told.ending.window
    assert window is not None and window.resets_at is not None
    assert (window.name, window.model) == ("concurrency", "one")
    assert abs(window.resets_at - datetime.now(UTC)) < timedelta(seconds=10)


def test_a_long_wait_is_left_to_the_yard(double: Site) -> None:
    base_url = double.start()
    double.script("coder", refuse=[429, {"error": {"message": "slow down", "code": "rate"}}, {"Retry-After": "600"}])
    told = chat(claim(base_url))
    assert told.ending.outcome == "rate_limited"
    assert len(double.requests("coder")) == 1
    window = told.ending.window
    assert window is not None and window.resets_at is not None
    assert window.resets_at > datetime.now(UTC) + timedelta(seconds=500)


def test_a_model_that_died_before_its_answer_is_asked_once_more(site: Site) -> None:
    base_url = site.start()
    site.script("coder", die="before", dies=1)
    told = chat(claim(base_url))
    assert (told.ending.outcome, told.ending.result) == ("completed", "Yes.")
    assert (len(site.requests("coder")), site.starts("coder")) == (2, 2)


def test_a_model_that_always_dies_is_not_asked_a_third_time(site: Site) -> None:
    base_url = site.start()
    site.script("coder", die="before")
    assert chat(claim(base_url)).ending.outcome == "overloaded"
    assert len(site.requests("coder")) == 2


def test_a_model_that_does_not_start_is_tried_twice(site: Site) -> None:
    base_url = site.start()
    site.script("coder", exit=1)
    told = chat(claim(base_url))
    assert told.ending.outcome == "overloaded"
    assert "exited prematurely" in (told.ending.error or "")
    assert site.starts("coder") == 2
    assert site.ask("orchestrator") == 200


def test_a_model_that_never_gets_healthy_is_given_up(double: Site) -> None:
    base_url = double.start(health_check_timeout=0.5)
    double.script("coder", hang=True)
    told = chat(claim(base_url))
    assert told.ending.outcome == "overloaded"
    assert "health check timed out" in (told.ending.error or "")
    assert double.starts("coder") == 1


def test_a_command_that_is_not_there_is_told(site: Site) -> None:
    base_url = site.start(two_models().replace("${env.LLAMA_SERVER}", "/nonexistent/llama-server", 1))
    told = chat(claim(base_url, model="one"))
    assert (told.ending.outcome, "failed to start" in (told.ending.error or "")) == ("overloaded", True)


@pytest.mark.parametrize(
    "script",
    [{"die": "during", "answer": "Yes, but then"}, {"done": False}, {"finish": None}, {"finish": None, "done": False}],
    ids=["died", "no DONE", "no finish_reason", "neither"],
)
def test_a_stream_that_is_cut_is_no_answer_but_stays_readable(site: Site, script: dict[str, Any]) -> None:
    base_url = site.start()
    site.script("coder", **script)
    told = chat(claim(base_url))
    assert (told.ending.outcome, told.ending.result) == ("network", None)
    assert told.said("text").startswith("Yes")
    assert len(site.requests("coder")) == 1


@pytest.mark.parametrize("style", ["object", "text"])
def test_an_unknown_model_is_asked_for_once_in_both_shapes_of_the_error(double: Site, style: str) -> None:
    base_url = double.start(error_style=style)
    told = chat(claim(base_url, model="nope"))
    assert told.ending.outcome == "failed"
    assert "does not know the model nope: no router for requested model" in (told.ending.error or "")


def test_a_request_that_is_wrong_is_not_repeated(site: Site) -> None:
    base_url = site.start()
    site.script("coder", refuse=[400, {"error": {"code": 400, "message": "unknown schema type"}}])
    told = chat(claim(base_url))
    assert (told.ending.outcome, "unknown schema type" in (told.ending.error or "")) == ("failed", True)
    assert len(site.requests("coder")) == 1


def test_a_prompt_longer_than_the_context_is_a_context_overflow(site: Site) -> None:
    base_url = site.start()
    site.script("coder", context=100)
    assert chat(claim(base_url, prompt="word " * 101)).ending.outcome == "context_overflow"
    assert chat(claim(base_url, prompt="word " * 99)).ending.outcome == "completed"


def test_the_key_is_sent_and_its_absence_told(site: Site) -> None:
    base_url = site.start(two_models(top="apiKeys: [right]"))
    asked = claim(base_url, {"api_key_env": "MY_KEY"}, model="one")
    assert chat(asked, {"MY_KEY": "right"}).ending.outcome == "completed"
    assert chat(asked, {"MY_KEY": "wrong"}).ending.outcome == "unauthenticated"
    assert OpenAI().probe({"base_url": base_url}, {}).state == "unauthenticated"


def test_nobody_there_is_the_network(double: Site) -> None:
    base_url = double.start()
    double.close()
    told = chat(claim(base_url))
    assert (told.ending.outcome, "could not be reached" in (told.ending.error or "")) == ("network", True)


def test_the_words_of_a_loading_proxy_are_notes_and_a_failed_load_is_found(site: Site) -> None:
    base_url = site.start(two_models(top="sendLoadingState: true"))
    told = chat(claim(base_url, model="one"))
    assert (told.ending.result, told.said("thinking")) == ("Yes.", "")
    assert told.said("note") != ""
    site.script("two", exit=1)
    failed = chat(claim(base_url, model="two"))
    assert (failed.ending.outcome, failed.ending.result) == ("overloaded", None)


def test_an_attempt_that_is_stopped_lets_go_of_the_model(site: Site) -> None:
    base_url = site.start()
    site.script("coder", answer="One. Two.", gate=str(site.folder / "gate"))
    stopped = Running(claim(base_url))
    wait_until(lambda: len(site.requests("coder")) == 1)
    stopped.process.terminate()
    told = stopped.end()
    assert told.ending.outcome == "crashed"
    (site.folder / "gate").touch()
    assert site.ask("reasoning") == 200
