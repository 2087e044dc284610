"""The command line: which measures, how long, and where the page goes."""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import psycopg

from taskyard.runner.postgres import PostgresError

from .bench import Bench
from .errors import BenchError
from .machine import describe
from .measures import MEASURES
from .report import Section, page
from .server import Server


def main() -> int:
    """Returns the exit code: 1 where something could not be measured or, with --strict, a target does not hold."""
    options = _options()
    # So that the server is stopped and removed also when a CI system ends us.
    signal.signal(signal.SIGTERM, _stop)
    begun = time.monotonic()
    names: list[str] = [name for name in MEASURES if not options.only or name in options.only]
    sections: list[Section] = []
    _say("starting a server")
    try:
        with Server.open(_say) as server:
            machine = describe(server)
            for name in names:
                sections.append(
                    _measure(Bench(server, options.quick, lambda text, name=name: _say(f"{name}: {text}")), name)
                )
    except (BenchError, PostgresError) as error:
        print(error, file=sys.stderr)
        return 1
    minutes = (time.monotonic() - begun) / 60
    text = page(machine, sections, quick=options.quick, partial=bool(options.only), minutes=minutes)
    output: Path = options.output
    output.write_text(text, encoding="utf-8")
    _say(f"wrote {output} after {minutes:.1f} minutes")
    if any(section.failure for section in sections):
        return 1
    held = all(verdict.holds for section in sections for verdict in section.verdicts)
    return int(options.strict and not held)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Taskyard beside the raw floor and pgmq."
    )
    parser.add_argument("--quick", action="store_true", help="short rounds and small tables: does it work at all")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="one measure; may be repeated")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results.md"), help="where the page goes"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless every target holds")
    return parser.parse_args()


def _measure(bench: Bench, name: str) -> Section:
    title, measure = MEASURES[name]
    begun = time.monotonic()
    try:
        tables, verdicts = measure(bench)
    except (BenchError, psycopg.Error) as error:
        bench.say(f"NOT MEASURED: {error}")
        return Section(title, failure=" ".join(str(error).split()))
    for verdict in verdicts:
        bench.say(str(verdict))
    bench.say(f"took {time.monotonic() - begun:.0f} seconds")
    return Section(title, tables, verdicts)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
