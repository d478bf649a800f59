"""The project's pages, taken apart: fenced blocks, links, and what they name of the repository and of the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Top-level names of the repository, as they may begin a path in a page.
_TOP = "olsock|csrc|worker|tests|benchmarks|scripts|docs|\\.ci"
_PATH = re.compile(rf"(?:\./)?((?:{_TOP})/[\w./*-]*|[A-Z][A-Z]+\.md|LICENSE|pyproject\.toml|setup\.py)")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language and where it begins."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Every page of prose that belongs to the repository."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "csrc" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
    return sorted(found)


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found: list[Block] = []
    language, begun, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif begun:
            found.append(Block(language, "".join(f"{each}\n" for each in lines), begun))
            begun = 0
        else:
            language, begun, lines = line[3:].strip(), number, []
    assert not begun, f"{page.name}:{begun}: a fence without end"
    return found


def section(page: Path, title: str) -> str:
    """Return what stands between a heading and the next one of its kind."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"{page.name} has no section {title!r}"
    return match[2]


def tables(text: str) -> list[list[str]]:
    """Return the rows of a text's tables, cells stripped, without heads and rules."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [
        row
        for index, row in enumerate(rows)
        if not _is_rule(row) and not (rows[index + 1 :] and _is_rule(rows[index + 1]))
    ]


def _is_rule(row: list[str]) -> bool:
    return all(set(cell) <= {"-", ":"} and cell for cell in row)


def links(page: Path) -> list[str]:
    """Return where the links of a page lead, without those to other sites."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors that headings of a page make, as forges form them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def paths(page: Path) -> set[str]:
    """Return the paths of the repository that a page names in code spans, `{a,b}` spelled out."""
    found: set[str] = set()
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        for word in span.split():
            for spelled in _spelled_out(word):
                if match := _PATH.fullmatch(spelled):
                    found.add(match[1])
    return found


def _spelled_out(word: str) -> list[str]:
    match = re.fullmatch(r"(.*)\{([\w,.]+)\}(.*)", word)
    return [match[1] + part + match[3] for part in match[2].split(",")] if match else [word]
