"""Sweep files in the shapes that W&B documents are read; what is not here is in broken.yaml.

The shapes are those of the pages "Define a sweep configuration" and "Sweep configuration options"
of W&B's documentation, and of the examples in its repository wandb/sweeps; names and values are
ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.sweeps.space.distributions import Categorical, LogUniform, Uniform
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.settings import Asha
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.spec.validator import VALIDATOR

OURS = """
name: of_w_and_b
trial: {algorithm: car_ft}
"""


def load(folder: Path, theirs: str) -> SweepSpec:
    file = folder / "theirs.yaml"
    file.write_text(theirs + OURS)
    return load_spec(file)


BASIC = """
program: train.py
method: bayes
metric:
  goal: minimize
  name: id/val/nll
parameters:
  optim.lr:
    min: 0.0001
    max: 0.1
  optim.batch_size:
    values: [16, 32, 64]
"""
CAPPED = """
program: train.py
entity: my-team
project: robust
description: a text
method: random
run_cap: 7
metric: {name: id/val/top1, goal: maximize, target: 0.9}
parameters:
  optim.lr: {distribution: log_uniform_values, min: !!float 1e-5, max: !!float 1e-3}
"""
OF_EACH_KIND = """
program: train.py
method: random
parameters:
  optim.batch_size: {distribution: q_log_uniform_values, max: 256, min: 32, q: 8}
  optim.label_smoothing: {values: [0.3, 0.4, 0.5]}
  optim.epochs: {value: 1}
  optim.lr: {distribution: uniform, max: 0.1, min: 0.001}
"""


@pytest.mark.parametrize(
    ("theirs", "method", "parameters", "warned"),
    [
        (
            BASIC,
            "tpe",
            [Uniform("optim.lr", 0.0001, 0.1), Categorical("optim.batch_size", (16, 32, 64))],
            ["program is W&B's and ignored here", "method bayes runs as tpe"],
        ),
        (
            CAPPED,
            "random",
            [LogUniform("optim.lr", 1e-5, 1e-3)],
            [f"{key} is W&B's and ignored here" for key in ("program", "entity", "project")],
        ),
        (
            OF_EACH_KIND,
            "random",
            [
                LogUniform("optim.batch_size", 32, 256, 8),
                Categorical("optim.label_smoothing", (0.3, 0.4, 0.5)),
                Uniform("optim.lr", 0.001, 0.1),
            ],
            ["program is W&B's and ignored here"],
        ),
    ],
    ids=["basic", "capped", "each kind"],
)
def test_a_file_in_w_and_bs_shape_is_read_and_what_has_no_meaning_is_named(
    theirs: str, method: str, parameters: list[object], warned: list[str], tmp_path: Path
) -> None:
    spec = load(tmp_path, theirs)
    assert (spec.method, [*spec.parameters]) == (method, parameters)
    assert [warning.partition(": ")[2] for warning in spec.warnings] == warned
    VALIDATOR.validate(parse(theirs + OURS).data)
    if theirs is CAPPED:
        assert (spec.metric.target, spec.run_cap) == (0.9, 7)
    if theirs is BASIC:
        assert (spec.metric.name, spec.metric.goal) == ("id/val/nll", "minimize")


def test_hyperband_runs_as_asha_with_the_same_brackets(tmp_path: Path) -> None:
    head = "method: random\nparameters: {optim.lr: {min: 0.1, max: 0.2}}\nearly_terminate: "
    for rule, least, factor, warned in (
        ("min_iter: 3", 3, 3, []),
        ("max_iter: 16, s: 3, eta: 2, strict: true", 2, 2, ["strict is W&B's and ignored here"]),
        # Brackets below one iteration do not count, as in W&B.
        ("max_iter: 9, s: 5", 1, 3, []),
    ):
        spec = load(tmp_path, f"{head}{{type: hyperband, {rule}}}\n")
        expected = Asha(metric="id/val/top1", min_epochs=least, reduction_factor=factor)
        assert spec.early_terminate == expected
        warnings = [warning.partition(": ")[2] for warning in spec.warnings]
        assert warnings == ["early_terminate hyperband runs as asha", *warned]


def test_nested_parameters_are_the_dotted_ones_and_a_constant_is_a_field_that_set_overrides(
    tmp_path: Path,
) -> None:
    file = tmp_path / "theirs.yaml"
    nested = "optim: {parameters: {lr: {values: [1e-4, 1e-3]}, epochs: {value: 3}}}"
    file.write_text(f"parameters:\n  {nested}\n  optim.weight_decay: {{values: [0.1]}}\n{OURS}")
    points = [{"optim.lr": lr, "optim.weight_decay": 0.1} for lr in (1e-4, 1e-3)]
    assert load_spec(file).points() == points
    assert load_spec(file).config_for({}).optim.epochs == 3
    assert load_spec(file, ["optim.epochs=5"]).config_for({}).optim.epochs == 5
    varied = load_spec(file, ["parameters.optim.epochs.values=[1, 2]"])
    assert len(varied.points()) == 4
