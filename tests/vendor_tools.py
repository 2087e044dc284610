"""The vendors' real command-line tools, pinned and installed once with npm, for the tests that drive them.

Each goes into a folder of its own below build/vendor-tools (TASKYARD_VENDOR_TOOLS names another place) and stays there
between runs. `python -m tests.vendor_tools` installs all that are missing and prints what they cost.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALL_TIMEOUT = 900  # seconds; the largest tool is a download of 100 to 150 MB


@dataclass(frozen=True, slots=True)
class VendorTool:
    """A package of the npm registry at a version, and the command it brings."""

    package: str
    version: str
    command: str


TOOLS = {
    "claude": VendorTool("@anthropic-ai/claude-code", "2.1.330", "claude"),
    "codex": VendorTool("@openai/codex", "0.169.0", "codex"),
    "gemini": VendorTool("@google/gemini-cli", "0.61.0", "gemini"),
    "opencode": VendorTool("opencode-ai", "1.18.33", "opencode"),
}


class NotInstallable(Exception):
    """npm or node is missing here, or npm failed; the message says which."""


def tool(name: str) -> Path:
    """Absolute path of the tool's executable, installed first where it is missing.

    Where it cannot be installed the test is skipped, except in CI (environment variable CI), where it fails.
    """
    try:
        return install(name)
    except NotInstallable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def install(name: str) -> Path:
    """Install the tool unless it is there; returns its executable. Raises NotInstallable."""
    wanted = TOOLS[name]
    home = folder(name)
    executable = home / "node_modules" / ".bin" / wanted.command
    if executable.exists():
        return executable
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NotInstallable(f"{program} is not installed here; the tests of {name} need it.")
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one download at a time, by whichever test process comes first
        if not executable.exists():
            _install(wanted, home)
    return executable


def folder(name: str) -> Path:
    """Where a tool lives, or will live."""
    root = os.environ.get("TASKYARD_VENDOR_TOOLS")
    parent = Path(root).absolute() if root else Path(__file__).parent.parent / "build" / "vendor-tools"
    return parent / f"{name}-{TOOLS[name].version}"


def _install(wanted: VendorTool, home: Path) -> None:
    """Into a folder beside it first, so that half an installation is never taken for one; npm's own cache stays as it is."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as scratch:
        made = Path(scratch) / "installed"
        made.mkdir()
        (made / "package.json").write_text('{"private": true}\n')
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--cache", f"{scratch}/cache"]
        try:
            done = subprocess.run(
                [*command, f"{wanted.package}@{wanted.version}"],
                cwd=made,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise NotInstallable(f"npm took more than {INSTALL_TIMEOUT} seconds for {wanted.package}.") from None
        if done.returncode != 0:
            raise NotInstallable(f"npm could not install {wanted.package}: {done.stderr.strip()[-500:]}")
        (made / "package.json").unlink()  # else tools that look for a project above them take this folder for one
        if home.exists():
            shutil.rmtree(home)
        made.rename(home)


def _megabytes(path: Path) -> int:
    """What the folder takes; a file with two names counts once, as npm's packages have them."""
    found = (file.lstat() for file in path.rglob("*"))
    return sum({stat.st_ino: stat.st_blocks * 512 for stat in found}.values()) // 1_000_000


def main() -> None:
    """Install all tools; one line for each: version it says it has, size, seconds the installation took."""
    for name, wanted in TOOLS.items():
        started = time.monotonic()
        executable = install(name)
        took = time.monotonic() - started
        told = subprocess.run([executable, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        found = re.search(r"\d+\.\d+\.\d+", told.stdout)
        if found is None or found[0] != wanted.version:
            raise SystemExit(f"{executable} --version printed {told.stdout.strip()!r}, not {wanted.version}")
        print(f"{name} {wanted.version}: {_megabytes(folder(name))} MB, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
