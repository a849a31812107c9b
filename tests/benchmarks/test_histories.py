"""The random histories of a sweep: drawn alike, judged, and a few carried out."""

from __future__ import annotations

import sys

import pytest

from benchmarks.chaos.histories import CHANGES, draw_history
from benchmarks.chaos.history_laws import trained_twice
from carft_sweep.sweeps.ledger.generations import EXTEND, REEVALUATE
from tests.e2e.conftest import ROOT
from tests.services.processes import ended

COUNT = 20


def test_a_number_draws_the_same_history_each_time_and_another_number_another() -> None:
    drawn = [draw_history(1, number, "local", {}) for number in range(COUNT)]
    assert drawn == [draw_history(1, number, "local", {}) for number in range(COUNT)]
    assert len({history.describe() for history in drawn}) == COUNT


def test_every_history_ends_with_a_file_that_can_end() -> None:
    for number in range(500):
        last = draw_history(1, number, "local", {}).file
        assert "import" not in last
        assert last.get("time_budget") in (None, "1h", "2h")


def test_no_change_that_is_drawn_begins_a_search_anew() -> None:
    keys = {name: f"trial.{name}" if name == "merges" else name for name in CHANGES}
    allowed = {*EXTEND, *REEVALUATE}
    assert {key for key in keys.values() if key not in allowed} == {"order of parameters"}


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("a begins, a epoch 0, a epoch 1, a stops, a begins, a epoch 2, a trained", 0),
        ("a begins, a epoch 0, a epoch 1, a stops, a begins, a epoch 1", 1),
        ("a begins, a epoch 0, a epoch 1, a epoch 2, a begins, a epoch 1", 0),
        ("a begins, a epoch 0, a epoch 1, a epoch 2, a epoch 3, a begins, a epoch 0", 1),
        ("a begins, a epoch 0, a trained, b begins, b epoch 0", 0),
        ("a begins, a epoch 0, a trained, a begins, a epoch 0", 1),
        ("a begins, a epoch 0, a trained, a damaged, a begins, a epoch 0", 0),
    ],
)
def test_an_epoch_is_trained_again_only_behind_a_checkpoint_or_damage(
    lines: str, count: int
) -> None:
    assert len([*trained_twice(lines.split(", "))]) == count


@pytest.mark.slow  # it computes for a minute
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drivers die with their parent")
@pytest.mark.timeout(900)
def test_random_histories_of_changes_and_crashes_end_as_undisturbed_sweeps() -> None:
    words = ("-m", "benchmarks.chaos.histories", "--count", f"{COUNT}", "--seed", "1")
    done = ended(sys.executable, *words, folder=ROOT, limit=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations by law  none" in done.stdout
