"""The pages of the documentation, as tests read them: their blocks of code, by language."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import dag

PAGES = [dag.ROOT / "README.md", dag.ROOT / "CONTRIBUTING.md", *sorted((dag.ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; line: that of its fence, counted from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order, without the indentation of the list that they stand in."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            str(path.relative_to(dag.ROOT)),
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
        )
        for found in re.finditer(
            r"^(?P<indent> *)```(?P<language>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$", text, re.MULTILINE
        )
    ]
