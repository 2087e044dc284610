"""The table of what was tried."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .findings import Case

HEADINGS = {"root": "root, agents with their own account", "ordinary": "ordinary user"}
PROMISE, CONTROL, ANSWER = 52, 58, 12


def verdict(outcome: Mapping[str, Any]) -> str:
    return "held" if outcome["held"] else "FAILED"


def line(case: Case, outcomes: Mapping[str, Mapping[str, Any]], situations: Sequence[str]) -> str:
    """One case: number, what holds, whether its control succeeded, and what the sandbox did in each situation."""
    controls = list(dict.fromkeys(outcome["control"] for outcome in outcomes.values()))
    told = [verdict(outcomes[name]) if name in outcomes else "needs root" for name in situations]
    columns = (
        textwrap.wrap(case.name, PROMISE),
        [row for control in controls for row in textwrap.wrap(control, CONTROL)],
    )
    seconds = sum(outcome["seconds"] for outcome in outcomes.values())
    rows: list[str] = []
    for index in range(max(1, *map(len, columns))):
        promise, control = (column[index] if index < len(column) else "" for column in columns)
        first = index == 0
        rows.append(
            f"{case.number if first else '':>3}  {promise:<{PROMISE}}  {control:<{CONTROL}}"
            + "".join(f"  {text if first else '':<{ANSWER}}" for text in told)
            + (f"{seconds:5.1f} s" if first else "")
        )
    for name, outcome in outcomes.items():
        rows += [f"     ! {name}: {broken}" for broken in outcome["broken"] if not outcome["held"]]
        rows += [f"     - {name}: not tried: {skipped}" for skipped in outcome["skipped"]]
    return "\n".join(row.rstrip() for row in rows)


def heading(situations: Sequence[str]) -> str:
    return f"{'#':>3}  {'promise':<{PROMISE}}  {'control succeeded':<{CONTROL}}" + "".join(
        f"  {name:<{ANSWER}}" for name in situations
    )
