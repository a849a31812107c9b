"""The user's cache lies where the user wants it."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.carft_core.files import user_cache


def test_the_cache_lies_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARFT_CACHE", "/elsewhere")
    assert user_cache() == Path("/elsewhere")
    monkeypatch.delenv("CARFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache() == Path("/xdg/carft-sweep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "carft-sweep"


def test_a_home_has_no_say_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a home of somebody else's would bring digests of weights and scripts of pages."""
    before = user_cache()
    monkeypatch.setenv("CARFT_HOME", str(tmp_path))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert user_cache() == before


def test_a_relative_folder_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert user_cache() == Path.home() / ".cache" / "carft-sweep"
