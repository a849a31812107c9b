"""What holds for every algorithm and merge. A new one is tested by being registered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm
from carft_sweep.carft_core.algorithms.base import PARTS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges import MERGES, Merge
from carft_sweep.carft_core.models.clip import OpenedClip, open_model
from carft_sweep.carft_core.models.source import BUILTIN
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import ALGORITHM_LAWS, MERGE_LAWS, check_algorithm, toy_teacher

BUILT_IN, BUILT_IN_MERGES = tuple(ALGORITHMS), tuple(MERGES)


@pytest.mark.parametrize("law", ALGORITHM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", BUILT_IN)
def test_an_algorithm_keeps_the_law(
    name: str, law: Callable[[type[Algorithm], Teacher], None], teacher: Teacher
) -> None:
    law(ALGORITHMS[name], teacher)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_algorithm_says_where_it_comes_from_and_keeps_as_many_models_as_it_says(
    name: str, teacher: Teacher
) -> None:
    assert "Source:" in (ALGORITHMS[name].__doc__ or "")
    algorithm = ALGORITHMS[name]()
    if not algorithm.trains:
        return

    def size(module: nn.Module) -> int:
        return sum(tensor.numel() for tensor in module.state_dict().values())

    tower, clip = size(teacher.classifier), size(teacher.clip.model)
    held = size(algorithm.build(teacher))
    assert (algorithm.copies - 1) * tower <= held  # CLIP-Adapter's holds no tower
    assert held <= algorithm.copies * (tower + clip)


@pytest.fixture(scope="module", params=BUILTIN)
def built_in(request: pytest.FixtureRequest) -> tuple[OpenedClip, Teacher]:
    clip = open_model(request.param)
    return clip, toy_teacher(clip)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_laws_are_held_on_both_built_in_models_by_what_they_have_the_parts_for(
    name: str, built_in: tuple[OpenedClip, Teacher]
) -> None:
    clip, teacher = built_in
    for part in ALGORITHMS[name]().uses & PARTS.keys():
        if clip.name == "builtin" and part in ("attention", "blocks"):  # a ConvNeXt
            with pytest.raises(RequestError):
                PARTS[part](clip)
            return
    check_algorithm(ALGORITHMS[name], teacher)


@pytest.mark.parametrize("law", MERGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", BUILT_IN_MERGES)
def test_a_merge_keeps_the_law(name: str, law: Callable[[type[Merge]], None]) -> None:
    law(MERGES[name])


def test_a_merge_says_where_it_comes_from() -> None:
    assert all("Source:" in (MERGES[name].__doc__ or "") for name in BUILT_IN_MERGES)
