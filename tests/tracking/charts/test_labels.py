"""Words beside points hide neither each other nor a point."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.charts.labels import Box, Label, Offset, place_labels, sample_line, square

PLOT = Box(0, 0, 640, 420)
RADIUS = 4.0


def overlap(one: Box, other: Box) -> float:
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(width, 0.0) * max(height, 0.0)


def boxes(labels: list[Label], offsets: list[Offset | None]) -> list[Box]:
    return [at.box(label) for label, at in zip(labels, offsets, strict=True) if at is not None]


places = st.tuples(st.integers(0, 640), st.integers(0, 420))


@given(st.lists(places, max_size=14))
def test_no_word_hides_another_one_or_a_point_or_leaves_the_plot(at: list[tuple[int, int]]) -> None:
    labels = [Label(f"kl_weight={n}", x, y, gap=RADIUS + 4) for n, (x, y) in enumerate(at)]
    points = [square(x, y, RADIUS) for x, y in at]
    placed = boxes(labels, place_labels(labels, points, [], PLOT))
    for one, other in combinations([*placed, *points], 2):
        if one in placed:
            assert overlap(one, other) < 0.01
    for box in placed:
        assert overlap(box, PLOT) > (box.right - box.left) * (box.bottom - box.top) - 0.01


def test_ten_settings_on_a_line_are_all_named() -> None:
    at = [(40 + 55 * n, 60 + 30 * n) for n in range(10)]
    labels = [Label(f"kl_weight={n}", x, y, gap=RADIUS + 4) for n, (x, y) in enumerate(at)]
    points = [square(x, y, RADIUS) for x, y in at]
    assert None not in place_labels(labels, points, [], PLOT)


def test_a_word_stands_where_it_covers_no_line_if_it_can() -> None:
    label = Label("fine_tune", 300, 200, gap=8)
    to_the_right = [*sample_line((300, 200), (640, 200))]
    (offset,) = place_labels([label], [square(300, 200, 4)], to_the_right, PLOT)
    assert offset is not None
    assert not any(overlap(offset.box(label), box) for box in to_the_right)


def test_a_word_without_room_is_left_out_unless_it_is_required() -> None:
    full = [Box(0, 0, 640, 420)]
    (left_out,) = place_labels([Label("lr=1", 300, 200)], full, [], PLOT)
    (drawn,) = place_labels([Label("car_ft", 300, 200, required=True)], full, [], PLOT)
    assert left_out is None
    assert drawn is not None


def test_who_finds_no_room_chooses_first_in_another_try() -> None:
    """The first label has many places, the second one only that which the first would take."""
    free, tight = Label("ab", 100, 100, gap=5), Label("cd", 130, 100, gap=5)
    walls = [Box(120, 0, 640, 93), Box(120, 107, 640, 420), Box(126, 93, 640, 107)]
    offsets = place_labels([free, tight], walls, [], PLOT)
    assert None not in offsets
    one, other = boxes([free, tight], offsets)
    assert overlap(one, other) == 0


def test_nothing_to_name_is_nothing() -> None:
    assert place_labels([], [], [], PLOT) == []
