"""The fields of a run are those that decided it."""

from __future__ import annotations

from typing import Any

from tracking.comparison.runs import fields, tells_apart

CONFIG: dict[str, Any] = {
    "model": {"name": "builtin", "pretrained": None},
    "data": {"family": "icon_shift", "root": "/mine", "val_fraction": 0.1},
    "algorithm": {"name": "car_ft", "kl_weight": 1.0, "layers": [1, 2]},
    "optim": {"lr": 1e-5, "micro_batch": 8},
    "merges": [{"name": "wise_ft"}],
    "eval": {"logits": "auto"},
    "keep": {"result": "last"},
    "device": "cuda",
    "precision": "auto",
    "workers": 4,
}


def test_they_are_dotted_and_leave_out_where_and_how_a_run_was_made() -> None:
    identity = {"optim": {"lr": 1e-5, "micro_batch": 8}}
    assert fields({"config": CONFIG, "identity": identity}) == {
        "model.name": "builtin",
        "model.pretrained": None,
        "data.family": "icon_shift",
        "data.val_fraction": 0.1,
        "algorithm.kl_weight": 1.0,
        "algorithm.layers": "[1, 2]",
        "optim.lr": 1e-5,
        "optim.micro_batch": 8,
        "precision": "auto",
    }


def test_what_did_not_enter_the_identity_is_left_out() -> None:
    assert "optim.micro_batch" not in fields({"config": CONFIG, "identity": {"optim": {"lr": 1}}})
    untrained = fields({"config": CONFIG, "identity": {"data": {}}})
    assert not [name for name in untrained if name.startswith("optim.")]


def test_a_folder_that_says_nothing_has_none() -> None:
    assert fields({}) == {}
    assert fields({"config": None, "identity": None}) == {}


def test_seed_and_places_tell_no_settings_apart() -> None:
    assert not any(map(tells_apart, ("seed", "data.root", "merges", "eval.logits", "keep.weights")))
    assert tells_apart("data.split_seed")
