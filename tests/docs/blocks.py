"""The fenced blocks of README and of the pages, with the marks above them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if path.parent != DOCS / "decisions"
)
SHELL = ("sh", "bash", "shell", "console")
FENCE = re.compile(
    r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w-]*)[^\n]*\n(.*?)^[ \t]*\2[ \t]*$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"<!-- (not run|slow|run)(?::[ \t]*(.*?))?[ \t]*-->")
BEFORE = frozenset({"exec", "srun", "nohup", "time", "sudo", "env", "--", "then", "do", "if", "!"})
"""The words that a command may follow."""
ENDS = frozenset("();<>|&")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    """Of its first fence."""
    language: str
    text: str
    mark: str | None = None
    """`not run`, `slow` or `run`, of the comment directly above it."""
    reason: str = ""

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    blocks = []
    for fence in FENCE.finditer(text):
        indent, _, language, body = fence.groups()
        above = text[: fence.start()].rstrip("\n").rpartition("\n")[2].strip()
        mark = MARK.fullmatch(above)
        body = "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        kind, reason = (mark[1], mark[2] or "") if mark else (None, "")
        line = text.count("\n", 0, fence.start()) + 1
        blocks.append(Block(page, line, language, body, kind, reason))
    return blocks


def every_block() -> Iterator[Block]:
    for page in PAGES:
        yield from blocks_of(page)


def calls(block: Block) -> Iterator[list[str]]:
    """The arguments of each `carft-sweep` in a block, of any language."""
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if not re.search(r"(^|[\s/])carft-sweep(\s|$)", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # prose with an apostrophe
            continue
        yield from _calls_in(words, is_shell=block.is_shell)


def _calls_in(words: list[str], *, is_shell: bool) -> Iterator[list[str]]:
    for at, word in enumerate(words):
        if word != "carft-sweep" and not word.endswith("/carft-sweep"):
            continue
        last = words[at - 1] if at else None
        starts = last is None or re.fullmatch(r"\w+=.*", last) or last in BEFORE
        if not (starts or (last is not None and set(last) <= ENDS)):
            continue
        if not is_shell and at:
            continue
        after = words[at + 1 :]
        end = next((i for i, other in enumerate(after) if set(other) <= ENDS), len(after))
        yield after[:end]
