"""Running one round of pgbench and reading what it prints."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError
from .server import Database, Server

Variables = Mapping[str, int]

# Seconds at the beginning of a timed round that do not count: every session compiles its functions and plans its
# statements then, and Taskyard's announces its first twenty changes.
WARM_UP = 1
REPORT = r"progress: ([\d.]+) s, ([\d.]+) tps"


@dataclass(frozen=True)
class Round:
    """Transactions (runs of the script), their rate after the warm-up, and that of each second but the last."""

    transactions: int
    rate: float
    slices: list[float]


def run(
    server: Server,
    database: Database,
    script: str,
    clients: int,
    variables: Variables,
    *,
    seconds: int | None = None,
    transactions: int | None = None,
) -> Round:
    """Run the script for a warm-up and so many seconds, or so many times in all.

    Raises BenchError if any client stopped early, as it does where a claim finds nothing.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql", delete=False) as file:
        file.write(script)
    argv = [server.pgbench, "--no-vacuum", "--protocol=prepared", f"--file={file.name}"]
    argv += [f"--client={clients}", f"--jobs={min(clients, os.cpu_count() or 1)}"]
    argv += [f"--define={name}={value}" for name, value in variables.items()]
    if transactions is not None:
        argv.append(f"--transactions={max(1, transactions // clients)}")
    else:
        argv += [f"--time={WARM_UP + (seconds or 0)}", f"--progress={WARM_UP}"]
    # libpq's own variables would override what the URL leaves open.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    try:
        done = subprocess.run(
            [*argv, database.url],
            capture_output=True,
            text=True,
            env={**environment, "LC_ALL": "C"},
            timeout=(seconds or 0) + 300,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"pgbench did not end within {error.timeout:.0f} seconds") from error
    finally:
        Path(file.name).unlink(missing_ok=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "error" in line or "ERROR" in line]
        raise BenchError(f"pgbench stopped: {' / '.join(said[:3]) or done.stderr.strip()[-400:]}")
    count = int(_number(r"transactions actually processed: (\d+)", done.stdout))
    rate = _number(r"tps = ([\d.]+)", done.stdout)
    reports = [(float(at), float(tps)) for at, tps in re.findall(REPORT, done.stderr)]
    if seconds is not None and reports:
        until, early = reports[0]
        rate = (count - early * until) / (count / rate - until)
    return Round(count, rate, [tps for _, tps in reports])


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"pgbench printed something unexpected: {text[-400:]}")
    return float(found[1])
