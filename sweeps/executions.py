"""With which code each execution of a sweep ran: commit and versions, kept beside the sweep."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tracking.context import context_tags

FILE = "executions.jsonl"
_COMMIT, _DIRTY, _VERSION = "mlflow.source.git.commit", "carft.git.dirty", "carft.version."


@dataclass(frozen=True)
class Code:
    """What was installed and checked out."""

    commit: str | None
    """Of the checkout around the working folder; None outside of one."""
    dirty: bool
    """Whether files that git knows were changed."""
    versions: Mapping[str, str]
    """Of Python and the packages that training and tracking stand on."""

    @classmethod
    def here(cls) -> Code:
        """Of this process, now."""
        tags = context_tags()
        return cls(
            commit=tags.get(_COMMIT),
            dirty=tags.get(_DIRTY) == "true",
            versions={
                name.removeprefix(_VERSION): value
                for name, value in tags.items()
                if name.startswith(_VERSION)
            },
        )

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        if self.commit is None:
            return shown
        return f"commit {self.commit}{' with changes' if self.dirty else ''}; {shown}"


def keep(folder: Path) -> None:
    """Note the code of an execution that begins, unless it is that of the one before."""
    code = Code.here()
    if code in executed(folder)[-1:]:
        return
    with (folder / FILE).open("a") as file:
        file.write(json.dumps({"began": time.time(), **vars(code)}) + "\n")


def executed(folder: Path) -> list[Code]:
    """What the executions of the sweep in `folder` ran with, in their order."""
    try:
        lines = (folder / FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            told = json.loads(line)
            found.append(Code(told["commit"], told["dirty"], told["versions"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line that a crash has torn
    return found
