"""The parts of a runner that need no process: lines, time-outs, rows of a transcript, folders."""

import asyncio
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from taskyard.runner.verbs import Event, storable
from taskyard.runner.worker.lines import LONGEST, Lines
from taskyard.runner.worker.places import Places
from taskyard.runner.worker.transcript import ROW, Transcript
from taskyard.runner.worker.watch import Watch

from .recorded import a_claim


@given(st.lists(st.text(alphabet="ab\n", max_size=20), max_size=20))
def test_lines_are_the_same_however_the_output_is_cut(chunks: list[str]) -> None:
    lines = Lines()
    found = [line for chunk in chunks for line in lines.add(chunk)] + lines.end()
    assert found == [*"".join(chunks).split("\n")[:-1], *filter(None, ["".join(chunks).split("\n")[-1]])]
    assert lines.left_out == 0


def test_a_line_that_is_too_long_is_left_out_and_those_around_it_are_not() -> None:
    lines = Lines()
    found = lines.add("before\n")
    for _ in range(LONGEST // (1 << 20) + 1):
        found += lines.add("x" * (1 << 20))
    found += lines.add("\nafter\n")
    assert (found, lines.left_out) == (["before", "after"], 1)


def test_each_time_out_has_its_own_moment() -> None:
    second = timedelta(seconds=1)
    watch = Watch(started=100.0, limit=60 * second, first_output=5 * second, idle=10 * second)
    assert watch.verdict(104.9) is None
    assert watch.verdict(105.0) == ("stalled", "Stopped: no answer within 0:00:05.")
    watch.sign_of_life(104.0, spoke=False)
    assert watch.verdict(105.0) is not None, "the tool's own lines are no answer"
    watch.sign_of_life(105.0, spoke=True)
    assert watch.verdict(114.9) is None
    watch.sign_of_life(114.9, spoke=False)
    assert watch.verdict(124.8) is None
    assert watch.verdict(124.9) == ("stalled", "Stopped: silent for 0:00:10.")
    assert watch.verdict(160.0) == ("timed_out", "Stopped after 0:01:00.")
    assert Watch(0.0, second, None, None).verdict(0.9) is None


def test_events_are_rows_of_their_own_and_never_larger_than_a_row() -> None:
    sent: list[Event] = []

    async def send(events: list[Event]) -> None:
        sent.extend(events)

    async def say() -> None:
        transcript = Transcript(send)
        await transcript.add("output", "one ")
        await transcript.add("output", "two")
        await transcript.say("text", "spoken", None)
        await transcript.say("text", "again", None)
        await transcript.say(
            "tool_call", "x" * 100_000, {"id": "1", "name": "Write", "input": {"content": "y" * 100_000}}
        )
        transcript.close()
        await transcript.run()

    asyncio.run(say())
    assert [event.body for event in sent[:3]] == ["one two", "spoken", "again"]
    assert [event.seq for event in sent] == [1, 2, 3, 4]
    assert len(sent[3].body) <= ROW
    assert sent[3].data == {"id": "1", "name": "Write", "cut": True}


def test_what_postgresql_cannot_hold_is_replaced_everywhere() -> None:
    given = {"a\0": ["\ud800x", {"b": "\0"}], "n": float("inf"), "ok": "😀 ü"}
    assert storable(given) == {"a\ufffd": ["\ufffdx", {"b": "\ufffd"}], "n": None, "ok": "😀 ü"}


def test_two_databases_on_one_host_share_no_folder(tmp_path: Path) -> None:
    one, two = Places("db", 5432, "yard", tmp_path), Places("db", 5433, "yard", tmp_path)
    claim = a_claim(task_id=7, provider="claude", workspace=None)

    async def rooms() -> None:
        async with one.rooms(claim, None, lasting=True) as here, two.rooms(claim, None, lasting=True) as there:
            assert len({here.workspace, here.tool, here.user, here.artifacts, there.workspace, there.tool}) == 6
            assert {folder.stat().st_mode & 0o777 for folder in (here.workspace, here.tool, there.user)} == {0o700}
            assert (here.given, here.workspace.name) == (False, "files")
            (here.artifacts / "left").touch()
        assert here.workspace.exists(), "a later attempt goes on there"
        assert not here.artifacts.exists()

    asyncio.run(rooms())
    assert (one.tasks(), two.tasks()) == ([7], [7])
    one.forget(7)
    assert (one.tasks(), two.tasks()) == ([], [7])


def test_folders_that_are_not_for_later_go_with_the_attempt(tmp_path: Path) -> None:
    places = Places("db", 5432, "yard", tmp_path)

    async def rooms() -> Path:
        async with places.rooms(a_claim(task_id=7), tmp_path, lasting=False) as here:
            assert (here.given, here.workspace) == (True, tmp_path)
            (here.tool / "deep" / "er").mkdir(parents=True)
            return here.tool.parent

    assert not asyncio.run(rooms()).exists()
    assert (tmp_path.exists(), places.tasks()) == (True, [])
