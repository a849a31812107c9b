"""What holds for every check of the doctor."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.sweeps.doctor.checks import (
    CHECKS,
    SUBJECTS,
    Check,
    Finding,
    examine,
    ok,
    unreachable,
    warning,
    wrong,
)
from carft_sweep.sweeps.home import Home
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable

SECRET = "p/w:with@signs"
EVERY = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)


def test_names_are_distinct_and_a_check_says_what_it_looks_at_and_what_to_do() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len({*names})
    assert list(dict.fromkeys(check.subject for check in CHECKS)) == list(SUBJECTS)
    for check in CHECKS:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", check.name)
        for text in (check.purpose, check.advice):
            assert len(text) > 15
            assert text == " ".join(text.split())
            assert not text.endswith(".")
        assert 0 < check.seconds <= 180


@EVERY
def test_nothing_is_made_and_no_secret_is_told_where_nothing_is_there(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    place = f"ada:{SECRET.replace('@', '%40').replace('/', '%2F')}@127.0.0.1:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{place}")
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", f"postgresql://{place}/trials")
    monkeypatch.setenv("CARFT_DATA", str(home.path / "data"))
    begun = time.monotonic()
    findings = examine(check, home)
    assert time.monotonic() - begun < check.seconds
    for finding in findings:
        assert not [of for of in (SECRET, "%40") if of in finding.message + finding.advice]
        assert "\n" not in finding.message
        assert bool(finding.advice) == (finding.level != "ok")
    assert not home.path.exists()


def of(*findings: Finding | Exception, todo: str = "do this instead") -> Check:
    def look(_: Home) -> Iterator[Finding]:
        for finding in findings:
            if isinstance(finding, Exception):
                raise finding
            yield finding

    return Check("a.b", "a thing of the test's", todo, look, seconds=5)


def test_a_check_that_raises_has_found_something(tmp_path: Path) -> None:
    for error, level in {
        ServiceUnreachable("gone"): "unreachable",
        AccessDenied("gone"): "wrong",
        ValueError("gone"): "wrong",
    }.items():
        first, last = examine(of(ok("so far"), error), Home(tmp_path))
        assert first == ok("so far")
        assert (last.level, last.advice) == (level, "do this instead")
        assert "gone" in last.message


def test_a_check_that_hangs_is_given_up_and_what_it_found_by_then_is_told(tmp_path: Path) -> None:
    def look(_: Home) -> Iterator[Finding]:
        yield warning("so far", "this")
        time.sleep(30)

    hanging = Check("a.b", "a thing of the test's", "wait for it", look, seconds=0.1)
    assert examine(hanging, Home(tmp_path)) == [
        warning("so far", "this"),
        unreachable("no answer within 0.1 s", "wait for it"),
    ]


def test_secrets_of_the_environment_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("HF_TOKEN", "on")  # too short to be told from a word
    finding = wrong(f"ada said {SECRET} on\n  postgresql://me:other@host/x", f"set {SECRET}")
    assert examine(of(finding), Home(tmp_path)) == [
        wrong("ada said *** on postgresql://host/x", "set ***")
    ]
