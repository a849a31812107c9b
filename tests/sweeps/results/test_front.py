"""The front is what Optuna's own definition gives."""

from __future__ import annotations

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.sweeps.results.records import front

GOALS = st.integers(2, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.booleans(), min_size=count, max_size=count),
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=count, max_size=count), max_size=25
        ),
    )
)


@settings(max_examples=60, deadline=None)
@given(goals=GOALS)
def test_the_front_is_optunas(goals: tuple[list[bool], list[list[float]]]) -> None:
    maximized, points = goals
    known = optuna.study.StudyDirection
    directions = [known.MAXIMIZE if more else known.MINIMIZE for more in maximized]
    study = optuna.create_study(directions=directions)
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point))
    expected = {trial.number for trial in study.best_trials}
    assert front(dict(enumerate(points)), maximized) == expected


def test_known_fronts() -> None:
    values = {4: [0.9, 10.0], 5: [0.8, 5.0], 6: [0.7, 7.0], 7: [0.9, 10.0], 8: [0.1, 1.0]}
    assert front(values, [True, False]) == {4, 5, 7, 8}
    assert front(values, [True, True]) == {4, 7}
    assert front({}, [True, False]) == set()


def test_a_front_of_thousands_is_found_too() -> None:
    values = {i: [i / 5000, 1 - i / 5000] for i in range(5000)}
    assert front(values, [True, True]) == set(range(5000))
    beaten = {i + 5000: [i / 5000 - 0.5, 0.5 - i / 5000] for i in range(5000)}
    assert front({**values, **beaten}, [True, True]) == set(range(5000))
