"""Interleaved rounds and what is read from them.

A shared machine's speed drifts by a factor of two between minutes. Contenders therefore take turns every few seconds,
and a ratio is the median of the ratios within each turn, never the ratio of two medians.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Measure = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """Per contender, one rate per round, in the same order for all."""

    of: dict[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.of[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as fast as `to`."""
        return median(a / b for a, b in zip(self.of[name], self.of[to], strict=True))


def interleave(rounds: int, contenders: Mapping[str, Measure], say: Callable[[str], None]) -> Rates:
    """Let each contender measure once per round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, measure in contenders.items():
            rates[name].append(measure())
        said = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
        say(f"round {number} of {rounds}: {said} per second")
    return Rates(rates)
