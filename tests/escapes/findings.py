"""What comes out of a case, and how the cases that are mere lists of expected answers are judged."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = "done"


@dataclass
class Findings:
    """Of one case in one situation.

    `controls`: whether each control did what the jail must stop; `impossible`: why a control cannot be had here;
    `broken`: what was not as it must be; `notes` go with it. `skipped`: what could not be tried, and why.
    """

    controls: dict[str, bool] = field(default_factory=dict[str, bool])
    impossible: dict[str, str] = field(default_factory=dict[str, str])
    broken: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])

    def must(self, held: object, sentence: str) -> None:
        if not held:
            self.broken.append(sentence)

    def control(self, what: str, succeeded: object) -> None:
        self.controls[what] = bool(succeeded)

    def judge(self, found: Mapping[str, str], allowed: Mapping[str, Collection[str]], where: str = "inside") -> None:
        """Every attempt must have got one of the answers that are allowed for it."""
        for name in sorted(found.keys() ^ allowed.keys()):
            self.broken.append(f"{name} {where}: is there, or is expected, but not both")
        for name in found.keys() & allowed.keys():
            self.must(found[name] in allowed[name], f"{name} {where}: {found[name]}")

    def judge_control(self, found: Mapping[str, str], excuses: Mapping[str, str]) -> None:
        """All must have succeeded, but what this host cannot do by nature: `excuses` say why."""
        for name, answer in found.items():
            if answer != DONE and name in excuses:
                self.impossible[name] = excuses[name]
            else:
                self.controls[name] = answer == DONE
                if answer != DONE:
                    self.notes.append(f"{name} outside: {answer}")

    @property
    def held(self) -> bool:
        """Whether the sandbox kept its promise, and that is proved: the controls that can be had succeeded."""
        return (
            not self.broken and all(self.controls.values()) and bool(self.controls or self.impossible or self.skipped)
        )

    def told(self) -> dict[str, Any]:
        """As JSON."""
        broken = [
            *self.broken,
            *(f"the control proves nothing: {name}" for name, fine in self.controls.items() if not fine),
        ]
        return {"held": self.held, "control": self._control(), "broken": broken + self.notes, "skipped": self.skipped}

    def _control(self) -> str:
        fine = sum(self.controls.values())
        why = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in self._reasons().items())
        if not self.controls:
            return f"none: {why}"
        count = "yes" if fine == len(self.controls) else f"{fine} of {len(self.controls)}"
        return f"{count}; none: {why}" if why else count

    def _reasons(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, reason in self.impossible.items():
            found.setdefault(reason, []).append(name)
        return found


Run = Callable[[Any, Findings], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """`name` says what holds, as a promise. `slow`: takes more than a few seconds, so not in every run of the tests."""

    number: int
    name: str
    run: Run
    slow: bool = False


def each(answer: Collection[str], *names: str) -> dict[str, Collection[str]]:
    """The same answers for several attempts."""
    return dict.fromkeys(names, answer)


CASES: dict[int, Case] = {}


def case(number: int, name: str, *, slow: bool = False) -> Callable[[Run], Run]:
    """Register what follows as a case."""

    def register(run: Run) -> Run:
        assert number not in CASES
        CASES[number] = Case(number, name, run, slow)
        return run

    return register
