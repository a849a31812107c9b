"""What is installed against what the package asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sweeps.doctor.machine import SHOWN
from tests.sweeps.doctor.findings import look, only


def asks_for(monkeypatch: pytest.MonkeyPatch, *required: str, python: str = ">=3.11") -> None:
    """Let carft-sweep ask for these."""
    real = metadata.requires

    def requires(name: str) -> list[str] | None:
        return [*required] if name == "carft-sweep" else real(name)

    monkeypatch.setattr(metadata, "requires", requires)
    monkeypatch.setattr(metadata, "metadata", lambda _: {"Requires-Python": python})


def not_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for function in ("version", "requires", "metadata"):
        real = getattr(metadata, function)

        def asked(name: str, real: Callable[[str], Any] = real) -> Any:
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(metadata, function, asked)


def test_here_everything_is_as_it_should_be(tmp_path: Path) -> None:
    told = only(look("versions.packages", tmp_path), "ok")
    assert all(f"{name} {metadata.version(name)}" in told for name in SHOWN)
    only(look("versions.python", tmp_path), "ok")
    assert "sources " in only(look("versions.own", tmp_path), "ok")


def test_what_is_missing_or_outside_of_its_range_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks_for(monkeypatch, "optuna<4", "nobody-has-this>=1", "torch>=2", "elsewhere; extra == 'x'")
    old, missing, shown = look("versions.packages", tmp_path)
    assert (old.level, missing.level, shown.level) == ("wrong", "wrong", "ok")
    assert old.message == f"optuna {metadata.version('optuna')} is outside of <4"
    assert missing.message == "nobody-has-this is not installed"


def test_another_python_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks_for(monkeypatch, python=">=4")
    assert "carft-sweep needs >=4" in only(look("versions.python", tmp_path), "wrong")


def test_sources_that_were_never_installed_still_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_installed(monkeypatch, "carft-sweep")
    only(look("versions.packages", tmp_path), "warning")
    only(look("versions.python", tmp_path), "ok")
    assert "(not installed)" in only(look("versions.own", tmp_path), "ok")
