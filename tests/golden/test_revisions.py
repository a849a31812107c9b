"""Runs keep their numbers as long as the code keeps its revision: no source file is hashed."""

from __future__ import annotations

import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.runs.identity import MEASURING_REVISION, TRAINING_REVISION
from tests.golden.write import Numbers, numbers_of_algorithm, numbers_of_merge, read

BUILT_IN, BUILT_IN_MERGES = tuple(ALGORITHMS), tuple(MERGES)
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""By so much CPUs and versions of PyTorch differ in rounding."""
SENSITIVE = {"spurious_kl": 5e-3}
"""What multiplies rounding: of an EPYC and a Xeon it differed by 2.5e-3 after 20 steps."""
UNSTABLE = {"starft": 1e-3}
"""Algorithms whose later numbers all follow from such a one: on an Intel Xeon and on an AMD EPYC
with AVX-512 they differed by up to 3.4e-4 after ten steps. The first step has the usual bound."""
FIRST_STEP = "1"
WRITE = "python -m tests.golden.write"


def bound_of(name: str, key: str) -> float:
    """The largest relative difference of a number of another machine, by its `loss@10` or such."""
    number, _, step = key.partition("@")
    later = RELATIVE if step == FIRST_STEP else UNSTABLE.get(name, RELATIVE)
    return SENSITIVE.get(number, later)


def check(name: str, numbers: Numbers, stored: Numbers | None, revision: str) -> None:
    """Fail with what to do when numbers are new, gone, or moved."""
    if stored is None:
        pytest.fail(f"{name} is new: keep its numbers with `{WRITE}`")
    expected = {
        key: pytest.approx(value, rel=bound_of(name, key), abs=ABSOLUTE)
        for key, value in stored.items()
    }
    pairs = {key: (expected.get(key), numbers.get(key)) for key in {**stored, **numbers}}
    differing = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        pytest.fail(
            f"{name} gives other numbers than its revision says (kept, now): {differing}. If that "
            f"is a mistake, mend it. If numbers are to move, raise {revision} in "
            "carft_core/runs/identity.py, so that runs made before are not taken for runs made "
            f"after, and write the file anew with `{WRITE}`"
        )


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_algorithm_trains_as_its_revision_says(name: str) -> None:
    numbers = numbers_of_algorithm(ALGORITHMS[name])
    check(name, numbers, read()["algorithms"].get(name), "TRAINING_REVISION")


@pytest.mark.parametrize("name", BUILT_IN_MERGES)
def test_a_merge_is_measured_as_its_revision_says(name: str) -> None:
    stored = read()["merges"]
    for label, numbers in numbers_of_merge(name).items():
        check(label, numbers, stored.get(label), "MEASURING_REVISION")


def test_the_file_is_of_these_revisions_and_of_nothing_that_is_gone() -> None:
    stored = read()
    revisions = (stored["training_revision"], stored["measuring_revision"])
    assert revisions == (TRAINING_REVISION, MEASURING_REVISION), f"one was raised: `{WRITE}`"
    labels = {point.label for name in BUILT_IN_MERGES for point in MERGES[name]().points()}
    assert (stored["algorithms"].keys(), stored["merges"].keys()) == ({*BUILT_IN}, labels), WRITE
