"""What a measure found, and the Markdown page made of it."""

from dataclasses import dataclass, field

from .machine import Machine


@dataclass(frozen=True)
class Verdict:
    """Whether a figure holds its target."""

    what: str
    value: str
    target: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.word}: {self.what}: {self.value} (target: {self.target})"

    @property
    def word(self) -> str:
        return "PASS" if self.holds else "FALLS SHORT"


def at_least(what: str, value: float, bound: float) -> Verdict:
    return Verdict(what, f"{value:.2f}", f"at least {bound:.2f}", value >= bound)


def at_most(what: str, value: float, bound: float) -> Verdict:
    return Verdict(what, f"{value:.2f}", f"at most {bound:.2f}", value <= bound)


@dataclass(frozen=True)
class Table:
    """Figures, with one line that says how to read them."""

    reading: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return self.reading + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Section:
    """One measure: its tables and the verdicts on them; `failure` says why there are none."""

    title: str
    tables: list[Table] = field(default_factory=list[Table])
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    failure: str = ""

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        if self.failure:
            parts.append(f"**NOT MEASURED**: {self.failure}")
        parts += [table.markdown() for table in self.tables]
        if self.verdicts:
            parts.append(
                "\n".join(
                    f"- **{verdict.word}** {verdict.what}: **{verdict.value}** (target: {verdict.target})"
                    for verdict in self.verdicts
                )
            )
        return "\n\n".join(parts)


def page(machine: Machine, sections: list[Section], *, quick: bool, partial: bool, minutes: float) -> str:
    """The whole results file."""
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    short = [verdict for verdict in verdicts if not verdict.holds]
    parts = [
        "# Benchmark results",
        "Written by `make bench` (see [bench/](.)). Contenders take turns every few seconds on one server with default"
        " durability; figures are medians of rounds, ratios are medians of the ratios within each round. Absolute"
        " figures are this machine's and move by a third between runs; ratios hold.\n\n"
        "*raw* is the floor: a bare table with one partial index, one transaction that sets a row running"
        " (`for update skip locked`), one that sets it completed. *pgmq* is `read` and `archive`.",
    ]
    if quick:
        parts.append(
            "**This was a quick run: short rounds and small tables. It shows that things work, not how fast.**"
        )
    if partial:
        parts.append("This run was limited to some of the measures (`--only`).")
    parts.append(machine.markdown(minutes))
    failed = [section for section in sections if section.failure]
    summary = f"**{len(verdicts) - len(short)} of {len(verdicts)} targets hold.**"
    if short:
        summary += " Falling short: " + "; ".join(f"{verdict.what} ({verdict.value})" for verdict in short) + "."
    if failed:
        summary += " Not measured: " + "; ".join(section.title for section in failed) + "."
    parts.append(summary)
    parts += [section.markdown() for section in sections]
    return "\n\n".join(parts) + "\n"


def rate(value: float) -> str:
    return f"{value:,.0f}"


def ratio(value: float) -> str:
    return f"{value:.2f}"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "no updates"
