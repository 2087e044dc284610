"""make test-sandbox: all cases in both situations, as a table. Exit status 1 if anything did not hold."""

import sys
import time

from . import table
from .cases import every_case
from .situations import AS_ROOT, SITUATIONS, Outcome, Situation, Unusable, installed_tools


def main() -> int:
    tools, missing = installed_tools()
    cases = every_case()
    wanted = [int(argument) for argument in sys.argv[1:]] or list(cases)
    columns, failed, begun = ("root", "ordinary"), 0, time.monotonic()
    situations = [Situation(name, tools) for name in SITUATIONS]
    for reason in missing:
        print(f"Not tried: {reason}", flush=True)
    if not AS_ROOT:
        print("This is an ordinary user: how a runner that is root confines agents needs root to be tried.", flush=True)
    print(table.heading(columns), flush=True)
    try:
        for number in wanted:
            outcomes: dict[str, Outcome] = {
                situation.name: situation.ask(number, thorough=True) for situation in situations
            }
            failed += not all(outcome["held"] for outcome in outcomes.values())
            print(table.line(cases[number], outcomes, columns), flush=True)
        costs = {situation.name: situation.start() for situation in situations}
    except Unusable as error:
        print(f"No sandbox can be set up here, so agents would not run either:\n{error}", flush=True)
        return 1
    finally:
        for situation in situations:
            situation.close()
    for situation in situations:
        hello = situation.hello
        who = f"uid {hello['uid']}, agents as {hello['agent']}, bubblewrap {hello['version']}"
        cost = f"an attempt at nothing takes {costs[situation.name] * 1000:.0f} ms (median)"
        print(f"{table.HEADINGS[situation.name]}: {who}; {cost}")
    print(f"{len(wanted)} cases, {failed} failed, {time.monotonic() - begun:.0f} seconds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
