"""What holds for every merge."""

from __future__ import annotations

from collections.abc import Callable

import torch

from carft_core.contracts.base import must, must_be_plain_settings, must_be_registered
from carft_core.merges import MERGES, Merge


def check_merge(cls: type[Merge]) -> None:
    """Hold a registered merge, with its fields at their defaults, to every law.

    Raises BrokenContract with what must hold and does not.
    """
    for law in MERGE_LAWS:
        law(cls)


def it_is_registered_frozen_and_survives_json_and_pickle(cls: type[Merge]) -> None:
    """A sweep file speaks of it by its name, and workers get it whole."""
    must_be_registered(MERGES, cls.name, cls)
    must_be_plain_settings(cls, cls.name)


def its_points_are_known_apart(cls: type[Merge]) -> None:
    """Each has a label that begins with the merge's name, and a step of its own."""
    points = cls().points()
    must(len(points) > 0, f"{cls.name}: it must yield some model")
    for what in ("label", "step"):
        given = [getattr(point, what) for point in points]
        must(len(set(given)) == len(given), f"{cls.name}: each {what} must be unique, got {given}")
    for point in points:
        must(
            point.label.startswith(cls.name),
            f"{cls.name}: the label {point.label!r} must begin with the merge's name",
        )


def a_merge_keeps_names_shapes_types_and_its_inputs(cls: type[Merge]) -> None:
    """What it yields loads into the same model, and what it got is as it was."""
    generator = torch.Generator().manual_seed(0)
    zero_shot, tuned = (
        {
            "a": torch.randn(3, 2, generator=generator),
            "n": torch.tensor(count),
            "h": torch.randn(2, generator=generator).half(),
        }
        for count in (1, 5)
    )
    kept = [{key: value.clone() for key, value in s.items()} for s in (zero_shot, tuned)]
    merge = cls()
    for point in merge.points():
        state = merge.state(point, zero_shot, tuned)
        must(
            {key: (value.shape, value.dtype) for key, value in state.items()}
            == {key: (value.shape, value.dtype) for key, value in tuned.items()},
            f"{point.label}: names, shapes and types must be the tuned model's",
        )
    for state, before in zip((zero_shot, tuned), kept, strict=True):
        must(
            all(torch.equal(state[key], before[key]) for key in before),
            f"{cls.name}: it must leave the weights that it is given as they are",
        )


MERGE_LAWS: tuple[Callable[[type[Merge]], None], ...] = (
    it_is_registered_frozen_and_survives_json_and_pickle,
    its_points_are_known_apart,
    a_merge_keeps_names_shapes_types_and_its_inputs,
)
"""Each raises BrokenContract; its name is what holds."""
