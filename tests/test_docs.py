"""What README and docs name is there: pages, commands, options, budgets that can be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.planning.grammar import parse_budget
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP = dict(re.findall(r"^\$ edgeprune(.*?) --help\n(.*?)(?=^\$ |\Z)",
                       (ROOT / "tests/cli/help.txt").read_text(encoding="utf-8"),
                       re.MULTILINE | re.DOTALL))


def _commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command of edgeprune that a page shows in a line of its own."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4,}|\$ )edgeprune (.*)$", text, re.MULTILINE):
        yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_options_and_budgets_are_those_of_the_help(page: Path) -> None:
    for words in _commands(page):
        name = max((name for name in HELP if words[: len(name.split())] == name.split()), key=len)
        assert name, words
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("-"):
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", HELP[name]), words
            if word == "--budget" and not following.endswith(".toml"):
                parse_budget(following)


def test_the_readme_has_commands() -> None:
    assert len(list(_commands(README))) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_page_and_its_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.is_file(), target
        if heading:
            assert heading in _headings(linked), target


def _headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_found_from_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in text] == []


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
