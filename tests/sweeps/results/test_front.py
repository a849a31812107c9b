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
