"""The user's cache lies where the user wants it."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_core.files import user_cache


def test_the_cache_lies_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARFT_CACHE", "/elsewhere")
    assert user_cache() == Path("/elsewhere")
    monkeypatch.delenv("CARFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache() == Path("/xdg/carft-sweep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "carft-sweep"


def test_a_relative_folder_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert user_cache() == Path.home() / ".cache" / "carft-sweep"
