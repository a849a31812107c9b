"""Numbers beside points do not lie upon each other, nor upon what is already there."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tracking.charts.tradeoff import Box, Frame, Label, sides

FAR = [Label("0.25", 0.1, 0.9, above=True), Label("0.5", 0.5, 0.8, above=False)]
PLACES = st.floats(0, 1)
LABELS = st.builds(Label, st.sampled_from(["0.1", "0.25", "0.5"]), PLACES, PLACES, st.booleans())


def test_where_there_is_room_each_stands_on_its_side() -> None:
    assert sides(FAR, []) == [True, False]


def test_one_without_room_goes_to_the_other_side() -> None:
    assert sides(FAR, [FAR[1].box]) == [True, True]


def test_one_without_room_on_both_sides_is_left_out() -> None:
    assert sides(FAR, [Box(0.5, 0.8, 0, 0, 30, 30)]) == [True, None]


def test_of_equal_numbers_at_one_point_the_first_stands() -> None:
    assert sides([FAR[0], Label("0.25", 0.101, 0.9, above=False)], []) == [True, None]
    assert sides([FAR[0], Label("0.75", 0.101, 0.9, above=False)], []) == [True, False]


def test_what_is_apart_on_a_desk_may_meet_on_a_phone() -> None:
    left, right = Label("0.5", 0.4, 0.5, above=True), Label("0.75", 0.6, 0.55, above=False)
    assert left.box.meets(right.box)
    assert sides([left, right], []) == [True, True]


@given(st.lists(LABELS, max_size=12))
def test_those_that_stand_never_meet(wanted: list[Label]) -> None:
    chosen = zip(wanted, sides(wanted, []), strict=True)
    stand = [Label(a.text, a.x, a.y, above=above) for a, above in chosen if above is not None]
    assert bool(stand) == bool(wanted)
    assert not any(one.box.meets(other.box) for one, other in combinations(stand, 2))


def test_a_frame_of_one_point_has_a_place_for_it() -> None:
    assert Frame(60.0, 60.0, 30.0, 30.0).at(60.0, 30.0) == (0.0, 0.0)
    assert Frame(60.0, 70.0, 30.0, 50.0).at(65.0, 35.0) == (0.5, 0.25)
