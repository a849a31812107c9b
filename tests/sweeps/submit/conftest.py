"""A project of a user's own, a git repository with a sweep file, and what answers for a head."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.services.answering import Answer, Asked, answering

SWEEP = """\
name: tiny
report: {page: false}
trial:
  data: {family: icon_shift, train_fraction: 0.02}
  algorithm: fine_tune
  optim: {steps: 2, batch_size: 8}
"""
Git = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `tiny.yaml`, a module and a `.gitignore`; not committed yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(SWEEP)
    (folder / "mine.py").write_text("X = 1\n")
    (folder / ".gitignore").write_text("ignored*\n")
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "CARFT_", "RAY_", "AWS_", "GIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CARFT_HOME", "/shared/home")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def git(project: Path) -> Git:
    """Runs git in the project, which is a repository with one commit of all that is there."""

    def call(*words: str, folder: Path = project) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        more = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", *who, *more, *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    call("init", "-q")
    call("add", "-A")
    call("commit", "-qm", "first")
    return call


def names_in(archive: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


@dataclass
class FakeHead:
    """Its answers by `METHOD /path`, or in general; what it was asked, with the headers."""

    answers: dict[str, Answer] = field(default_factory=dict)
    otherwise: Answer = field(default_factory=lambda: Answer("not here", 404))
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    address: str = ""


@contextmanager
def fake_head(**made: Any) -> Iterator[FakeHead]:
    """A server on a port of its own."""
    head = FakeHead(**made)

    def answer(asked: Asked) -> Answer:
        request = f"{asked.method} {asked.path}"
        head.asked.append((request, asked.headers, asked.body))
        return head.answers.get(request, head.otherwise)

    with answering(answer) as head.address:
        yield head
