"""What every adapter keeps, ours and the example: the promises of runner/adapters/base.py, on recorded and damaged runs."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskyard.runner.adapters import Adapter, BadSettings, Exit, Launch, Run, Said, Seen
from taskyard.runner.adapters.fields import obj
from taskyard.runner.adapters.registry import built_in
from taskyard.runner.adapters.tools import json_line
from taskyard.runner.verbs import Ending, Usage, Window, storable

from .qwen_example import QWEN
from .recorded import FOLDER, Recording, a_run, a_tool, read_all, recordings, replay

ADAPTERS = {adapter.name: adapter for adapter in [*built_in(), QWEN]}
STRUCTURED = {name: adapter for name, adapter in ADAPTERS.items() if adapter.structured}
RECORDED = {folder.name: recordings(folder.name) for folder in sorted(FOLDER.iterdir())}
EVERY_RECORDING = [pytest.param(r, id=f"{r.tool}-{r.case}") for tool in RECORDED.values() for r in tool]
SEED = next((Path(__file__).parent.parent / "sql" / "schema").glob("*_seed.sql")).read_text()
OUTCOMES = set(re.findall(r"^\('(\w+)', '", SEED[SEED.index("into outcome_policies") :].split(";\n")[0], re.MULTILINE))


# The tool's own record that a run has succeeded: without one of these lines nothing is completed.
SUCCESS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "claude": lambda e: e.get("type") == "result" and e.get("is_error") is False,
    "codex": lambda e: e.get("type") == "turn.completed",
    "gemini": lambda e: e.get("type") == "result" and e.get("status") == "success",
    "openai": lambda e: e.get("type") == "done",
    "opencode": lambda e: e.get("type") == "step_finish" and obj(e.get("part")).get("reason") == "stop",
    "qwen": lambda e: e.get("type") == "result" and e.get("is_error") is False,
}

# As the runner hands it over: decoded, and without NUL, but JSON can hold anything in its escapes.
garbage = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
    st.sampled_from(
        ["", " ", "{", "}", "null", "[]", "{}", '{"type":', "[" * 5000, '{"a":' * 5000, '{"type":"\\u0000"}']
    ),
)
wrong = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**15, max_value=10**40),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["\0", "\ud800", "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00+23:59", "429", "in 99999999999h"]
    ),
    st.just([]),
    st.just({}),
    st.just([[None]]),
)


@st.composite
def damaged(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """The lines with some of them lost, doubled, cut, or with a value of the wrong type, and garbage between them."""
    found = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        how = draw(st.sampled_from(["insert", "drop", "double", "cut", "swap", "swap", "swap"]))
        if how == "insert" or at == len(found):
            found.insert(at, draw(garbage))
        elif how == "drop":
            del found[at]
        elif how == "double":
            found.insert(at, found[at])
        elif how == "cut":
            found[at] = found[at][: draw(st.integers(0, len(found[at])))]
        elif (event := json_line(found[at])) is not None:
            _swap(draw, event)
            found[at] = json.dumps(event)
    return found


def _swap(draw: st.DrawFn, value: Any) -> None:
    """Replace one value somewhere within."""
    while True:
        keys = _keys(value)
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if not isinstance(value[key], dict | list) or not value[key] or draw(st.booleans()):
            value[key] = draw(wrong)
            return
        value = value[key]


def _keys(value: Any) -> list[Any]:
    """What an object or a list can be indexed with."""
    return [*value] if isinstance(value, dict) else [*range(len(value))]  # pyright: ignore[reportUnknownVariableType]


def assert_sound(seen: list[Seen], ending: Ending) -> None:
    """What the runner and the database rely on."""
    assert ending.outcome in OUTCOMES
    assert (ending.error is None) == (ending.outcome == "completed")
    usages = [s for s in [*seen, ending.usage] if isinstance(s, Usage)]
    for usage in usages:
        for number in (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.turns, usage.cost_usd):
            assert number is None or (number >= 0 and math.isfinite(number))
    for window in [s for s in [*seen, ending.window] if isinstance(s, Window)]:
        assert window.resets_at is None or window.resets_at.utcoffset() == timedelta(0)
        assert window.used_percent is None or math.isfinite(window.used_percent)
    rows = [[s.body, s.data] for s in seen if isinstance(s, Said)]
    told = [ending.result, ending.error, ending.evidence, ending.session_id, *(u.known() for u in usages)]
    assert storable([rows, told]) == [rows, told]
    json.dumps([rows, told], allow_nan=False)


@pytest.mark.parametrize("recording", EVERY_RECORDING)
def test_recorded_run_is_told_soundly(recording: Recording, tmp_path: Path) -> None:
    assert_sound(*read_all(ADAPTERS[recording.tool], recording, tmp_path))


@pytest.mark.parametrize("recording", EVERY_RECORDING)
def test_ending_does_not_depend_on_output_that_was_cut_off(recording: Recording, tmp_path: Path) -> None:
    adapter, run = ADAPTERS[recording.tool], recording.run(tmp_path)
    _, whole = replay(adapter.read(run), recording.lines, recording.exit)
    cut = Exit(recording.code, recording.stdout[-100:], recording.stderr, stdout_cut=True)
    _, tail = replay(adapter.read(run), recording.lines, cut)
    assert _without_time(tail) == _without_time(whole)


def _without_time(ending: Ending) -> tuple[Ending, bool]:
    """The ending, and whether it has a time: a wait told in seconds is counted from now."""
    window = ending.window
    timeless = replace(window, resets_at=None) if window else None
    return replace(ending, window=timeless), window is not None and window.resets_at is not None


@pytest.mark.parametrize("name", RECORDED)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_output_never_breaks_a_reading_nor_makes_a_success(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    recording = data.draw(st.sampled_from(RECORDED[name]))
    lines = data.draw(damaged(recording.lines))
    code = data.draw(st.sampled_from([recording.code, 0, 1, -9]))
    seen, ending = replay(ADAPTERS[name].read(recording.run(tmp_path)), lines, Exit(code, "", recording.stderr))
    assert_sound(seen, ending)
    if ending.outcome == "completed":
        assert any(event is not None and SUCCESS[name](event) for event in map(json_line, lines))


@pytest.mark.parametrize("name", STRUCTURED)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(garbage, max_size=8), code=st.sampled_from([0, 1, 2, 42, 53, 137, 143, 173, 255, -9, -15]))
def test_garbage_is_never_a_success(name: str, tmp_path: Path, lines: list[str], code: int) -> None:
    run = a_run(tmp_path)
    seen, ending = replay(STRUCTURED[name].read(run), lines, Exit(code, "", "\n".join(lines)))
    assert_sound(seen, ending)
    assert ending.outcome != "completed"


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURED)
def test_line_of_ten_megabytes_is_survived(name: str, tmp_path: Path) -> None:
    huge = "x" * 10_000_000
    shapes = {event["type"]: event for r in RECORDED.get(name, []) for event in map(json_line, r.lines) if event}
    lines = [huge, "{" + huge, '{"type":"' + huge, *(json.dumps(_swollen(event, huge)) for event in shapes.values())]
    reading = STRUCTURED[name].read(a_run(tmp_path))
    for line in lines:
        for event in reading.line(line):
            assert event
    assert reading.ending(Exit(1, "", "")).outcome in OUTCOMES


def _swollen(value: Any, huge: str) -> Any:
    """The same event, its longest text but the type replaced by a huge one."""
    texts: list[tuple[int, Any, Any]] = []

    def look(within: Any) -> None:
        for key in _keys(within):
            part = within[key]
            if isinstance(part, str) and key != "type":
                texts.append((len(part), within, key))
            elif isinstance(part, dict | list):
                look(part)

    look(value)
    if texts:
        _, within, key = max(texts, key=lambda t: t[0])
        within[key] = huge
    return value


def a_host(folder: Path) -> dict[str, str]:
    """An environment in which every adapter finds its tool and a key, and other secrets beside them."""
    for tool in ("claude", "codex", "gemini", "opencode", "qwen"):
        a_tool(folder, tool)
    keys = {
        name: f"key-in-{name}" for name in ("ANTHROPIC_API_KEY", "CODEX_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY")
    }
    return {
        "PATH": str(folder),
        "HOME": str(folder),
        "PGPASSWORD": "of-the-database",
        "AWS_SECRET_ACCESS_KEY": "of-aws",
        **keys,
    }


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=lambda a: a.name)
@pytest.mark.parametrize("changes", [{}, {"session_id": "0b8e6c1e-7f1a-4a51-9d0f-3a0a7a1b2c3d", "note": "mumble-note"}])
def test_prompt_reaches_the_tool_by_standard_input_alone(
    adapter: Adapter, changes: dict[str, Any], tmp_path: Path
) -> None:
    command = ["cat"] if adapter.name == "command" else None
    run = a_run(tmp_path, a_host(tmp_path / "bin"), prompt="mumble-prompt", model="a-model", command=command, **changes)
    launch = adapter.prepare(run)
    assert b"mumble" in launch.stdin
    assert not any("mumble" in text for text in [*launch.argv, *launch.env, *launch.env.values()])


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=lambda a: a.name)
def test_child_gets_no_secret_of_others(adapter: Adapter, tmp_path: Path) -> None:
    command = ["cat"] if adapter.name == "command" else None
    launch = adapter.prepare(a_run(tmp_path, a_host(tmp_path / "bin"), model="a-model", command=command))
    assert not {"of-the-database", "of-aws"} & set(launch.env.values())
    assert len([text for text in launch.env.values() if text.startswith("key-in-")]) <= 1


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=lambda a: a.name)
def test_probe_never_tells_a_secret(adapter: Adapter, tmp_path: Path) -> None:
    offer = adapter.probe({}, a_host(tmp_path / "bin"))
    assert offer.state == "ready" or offer.detail
    assert "key-in-" not in repr(offer)


@pytest.mark.parametrize("adapter", STRUCTURED.values(), ids=lambda a: a.name)
def test_unknown_setting_is_refused_by_name(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="colour"):
        adapter.probe({"colour": "red"}, a_host(tmp_path / "bin"))


GATEWAY = "http://127.0.0.1:3101"
HIDDEN = "marker-of-a-secret"  # a part of every key below
VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CODEX_API_KEY",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
    "MINE",
)
# Every way to have a key, for each adapter: settings, and what the runner's environment has besides the tools.
KEYED: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    *(("claude", {}, {name: f"{HIDDEN}-{name}"}) for name in VARIABLES[:3]),
    ("claude", {"api_key_env": "MINE"}, {"MINE": f"sk-ant-oat01-{HIDDEN}"}),
    ("claude", {"api_key_env": "MINE", "base_url": "https://llm.example.org"}, {"MINE": HIDDEN}),
    ("codex", {}, {"CODEX_API_KEY": HIDDEN}),
    ("codex", {"api_key_env": "MINE", "base_url": "https://llm.example.org/v1"}, {"MINE": HIDDEN}),
    ("codex", {}, {"auth.json": HIDDEN}),
    ("gemini", {}, {"GEMINI_API_KEY": HIDDEN}),
    ("gemini", {"api_key_env": "MINE", "base_url": "https://llm.example.org"}, {"MINE": HIDDEN}),
    ("gemini", {}, {"GOOGLE_GENAI_USE_VERTEXAI": "true", "GOOGLE_API_KEY": HIDDEN, "GOOGLE_OTHER_SECRET": HIDDEN}),
    ("openai", {"api_key_env": "MINE"}, {"MINE": HIDDEN}),
    ("opencode", {"api_key_env": "MINE"}, {"MINE": HIDDEN}),
    ("qwen", {}, {"OPENAI_API_KEY": HIDDEN}),
    ("qwen", {"api_key_env": "MINE", "base_url": "https://llm.example.org/v1"}, {"MINE": HIDDEN}),
]


def jailed(run: Run) -> Run:
    """The same run, in a sandbox; the runner's own folder is beside the run's."""
    return replace(run, gateway=GATEWAY, environ={"TASKYARD_HOME": str(run.home.parent / "yard"), **run.environ})


def a_keyed_run(folder: Path, name: str, settings: dict[str, Any], environ: dict[str, str]) -> Run:
    host = {n: text for n, text in a_host(folder / "bin").items() if n in ("PATH", "HOME")}
    environ = dict(environ)
    if key := environ.pop("auth.json", None):
        (folder / "bin" / ".codex").mkdir()
        (folder / "bin" / ".codex" / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": key}))
    return a_run(
        folder, {**host, **environ}, model="a-model", settings=settings, system_prompt="Be brief.", output_schema={}
    )


def told(launch: Launch, run: Run) -> str:
    """All that the child can read."""
    files = [path.read_text() for path in run.home.rglob("*") if path.is_file()]
    return "\n".join([*launch.argv, launch.stdin.decode(), *launch.env, *launch.env.values(), *files])


@pytest.mark.parametrize(("name", "settings", "environ"), KEYED, ids=lambda v: v if isinstance(v, str) else None)
def test_key_stays_with_the_gateway(
    name: str, settings: dict[str, Any], environ: dict[str, str], tmp_path: Path
) -> None:
    run = a_keyed_run(tmp_path, name, settings, environ)
    launch = ADAPTERS[name].prepare(jailed(run))
    assert launch.upstream is not None
    (credential,) = launch.upstream.headers.values()
    assert HIDDEN in credential
    assert HIDDEN not in told(launch, run) and HIDDEN not in launch.upstream.url
    assert GATEWAY in told(launch, run)
    assert "example.org" not in told(launch, run)
    assert launch.upstream.url.startswith(settings.get("base_url", "http"))
    assert (launch.hosts, launch.shared) == ((), ())
    assert HIDDEN in told(ADAPTERS[name].prepare(run), run) or "auth.json" in environ


@pytest.mark.parametrize("name", ["claude", "codex", "gemini", "openai", "opencode", "qwen"])
def test_local_server_without_a_key_is_behind_the_gateway_too(name: str, tmp_path: Path) -> None:
    run = a_keyed_run(tmp_path, name, {"base_url": "http://127.0.0.1:8080/v1"}, {})
    launch = ADAPTERS[name].prepare(jailed(run))
    assert launch.upstream is not None and launch.upstream.url == "http://127.0.0.1:8080/v1"
    assert ":8080" not in told(launch, run) and GATEWAY in told(launch, run)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=lambda a: a.name)
def test_without_a_sandbox_nothing_of_it_is_asked_for(adapter: Adapter, tmp_path: Path) -> None:
    command = ["cat"] if adapter.name == "command" else None
    run = a_run(tmp_path, a_host(tmp_path / "bin"), model="a-model", command=command)
    launch = adapter.prepare(run)
    assert (launch.upstream, launch.hosts, launch.programs, launch.shared) == (None, (), (), ())
    adapter.settle(run)
    assert not (tmp_path / "yard").exists()


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=lambda a: a.name)
def test_settling_never_raises(adapter: Adapter, tmp_path: Path) -> None:
    for unusable in ({}, {"home": str(tmp_path / "nowhere")}, {"colour": "red"}):
        adapter.settle(jailed(a_run(tmp_path, {"HOME": str(tmp_path)}, settings=unusable)))


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("plant", ["link", "folder link", "pipe"])
def test_what_an_agent_planted_in_the_folder_is_never_followed(name: str, plant: str, tmp_path: Path) -> None:
    run = jailed(a_keyed_run(tmp_path, name, {}, {variable: HIDDEN for variable in VARIABLES}))
    adapter = STRUCTURED[name]
    adapter.prepare(run)
    written = sorted(path.relative_to(run.home) for path in run.home.rglob("*"))
    victims = tmp_path / "victims"
    (victims / "folder").mkdir(parents=True)
    (victims / "file").write_text("untouched")
    for path in {Path(part) for part in written} | {Path("auth.json"), Path(".claude.json"), Path("sessions")}:
        _plant(run.home / path, victims, plant, run.home)
    adapter.prepare(run)
    reading = adapter.read(run)
    reading.line('{"type": "thread.started", "thread_id": "t"}')
    assert reading.ending(Exit(1, "", "")).outcome in OUTCOMES
    adapter.settle(run)
    assert (victims / "file").read_text() == "untouched"
    assert [path.name for path in sorted(victims.rglob("*"))] == ["file", "folder"]


def _plant(path: Path, victims: Path, plant: str, home: Path) -> None:
    """Put something in the place of what the adapter writes, or of the folder that it writes that into."""
    if plant == "folder link" and path.parent != home:
        path = path.parent
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        if any(path.iterdir()) and plant != "folder link":
            return  # a folder with something in it: its files are planted themselves
        shutil.rmtree(path)
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if plant == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victims / ("folder" if plant == "folder link" else "file"))
