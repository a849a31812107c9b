"""The user's cache lies where the user wants it."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.carft_core.files import user_cache


def test_the_cache_lies_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARFT_CACHE", "/elsewhere")
    assert user_cache() == Path("/elsewhere")
    monkeypatch.delenv("CARFT_CACHE")
    own = Path.home() / ".cache" / "carft-sweep"
    for home, expected in (("/xdg", Path("/xdg/carft-sweep")), ("relative", own), (None, own)):
        monkeypatch.setenv("XDG_CACHE_HOME", home) if home else monkeypatch.delenv("XDG_CACHE_HOME")
        assert user_cache() == expected


def test_a_home_has_no_say_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a home of somebody else's would bring digests of weights and scripts of pages."""
    before = user_cache()
    monkeypatch.setenv("CARFT_HOME", str(tmp_path))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert user_cache() == before
