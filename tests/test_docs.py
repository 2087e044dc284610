"""The pages of docs/: the generator takes them, every link leads somewhere, and the reference is that of this schema."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Yard
from .test_pages import ROOT

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))


def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and MyST make them."""
    without = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", without, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists() and found.is_relative_to(ROOT), target
        assert not anchor or anchor in headings(found), target


def test_every_page_is_in_the_contents() -> None:
    listed = set(re.findall(r"^(\w[\w-]*)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


def test_the_generator_takes_them_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", tmp_path / "trees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "explain_task" in (tmp_path / "html" / "sql.html").read_text()


def test_the_reference_is_that_of_this_schema(yard18: Yard) -> None:
    """`make reference` writes it."""
    text = reference().reference(yard18.connect())
    if os.environ.get("REFERENCE"):
        (DOCS / "sql.md").write_text(text)
    assert (DOCS / "sql.md").read_text() == text
    assert text.count("\n### ") > 90
    empty = re.findall(r"^### (\w+)\n\n(?:```.*?```\n\n)?\n", text, re.S | re.M)
    assert empty == []  # everything public says what it is


def test_each_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (.*?) \| (.*test_.*?) \|$", (DOCS / "promises.md").read_text(), re.MULTILINE)
    assert len(rows) > 12
    for promise, keepers in rows:
        for name in re.findall(r"\[(test_\w+\.py)\]", keepers):
            assert "def test_" in (ROOT / "tests" / name).read_text(), promise
