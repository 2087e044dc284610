"""The vendors' tools are installed once, whole or not at all; npm itself is made up here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vendor_tools import TOOLS, NotInstallable, folder, install, tool

NPM = """#!/bin/sh
echo "$@" >> "$NPM_LOG"
[ -z "$NPM_FAILS" ] || { echo 'npm error 404' >&2; exit 1; }
mkdir -p node_modules/.bin
echo '#!/bin/sh' > node_modules/.bin/gemini
chmod +x node_modules/.bin/gemini
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for tools, and an npm that notes its arguments in the file returned."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("npm", NPM), ("node", "#!/bin/sh\n")):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("TASKYARD_VENDOR_TOOLS", str(tmp_path / "tools"))
    monkeypatch.setenv("NPM_LOG", str(tmp_path / "npm.log"))
    monkeypatch.delenv("NPM_FAILS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    return tmp_path / "npm.log"


def test_processes_that_need_a_tool_together_install_it_once(log: Path) -> None:
    command = [sys.executable, "-c", "from tests.vendor_tools import install; print(install('gemini'))"]
    root = Path(__file__).parent.parent
    together = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=60)[0].strip() for process in together}
    assert paths == {str(install("gemini"))}
    [call] = log.read_text().splitlines()
    assert f"@google/gemini-cli@{TOOLS['gemini'].version}" in call
    assert os.access(install("gemini"), os.X_OK)


def test_a_failed_installation_leaves_nothing_and_is_tried_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_FAILS", "1")
    with pytest.raises(NotInstallable, match="npm error 404"):
        install("gemini")
    assert [path.name for path in folder("gemini").parent.iterdir()] == [".lock"]
    monkeypatch.delenv("NPM_FAILS")
    assert install("gemini").exists()


def test_without_npm_a_test_is_skipped_but_not_in_ci(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="node is not installed here"):
        tool("gemini")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NotInstallable):
        tool("gemini")
