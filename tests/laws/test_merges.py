"""What holds for every merge. A new one is tested by being registered."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from carft_core.merges import MERGES


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_says_what_it_is_and_survives_json_and_pickle(name: str) -> None:
    merge = MERGES[name]()
    assert merge.name == name
    assert merge.summary
    assert "Source:" in (type(merge).__doc__ or "")
    assert type(merge).model_validate(json.loads(merge.model_dump_json())) == merge
    assert pickle.loads(pickle.dumps(merge)) == merge


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_keeps_names_shapes_types_and_its_inputs(name: str) -> None:
    torch.manual_seed(0)
    zero_shot = {"a": torch.randn(3, 2), "n": torch.tensor(1), "h": torch.randn(2).half()}
    tuned = {"a": torch.randn(3, 2), "n": torch.tensor(5), "h": torch.randn(2).half()}
    kept = [{key: value.clone() for key, value in s.items()} for s in (zero_shot, tuned)]
    merge = MERGES[name]()
    points = merge.points()
    assert points
    assert len({point.label for point in points}) == len(points)
    assert len({point.step for point in points}) == len(points)
    for point in points:
        assert point.label.startswith(name)
        state = merge.state(point, zero_shot, tuned)
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
            k: (v.shape, v.dtype) for k, v in tuned.items()
        }
    for state, before in zip((zero_shot, tuned), kept, strict=True):
        assert all(torch.equal(state[key], before[key]) for key in before)
