"""Sweep files in the shapes that W&B documents are read, or answered by the key that is not here.

The shapes are those of the pages "Define a sweep configuration" and "Sweep configuration options"
of W&B's documentation, and of the examples in its repository wandb/sweeps; names and values are
ours, and `aliases` map a training script's names to trial fields.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    FloatUniform,
    IntUniform,
    Parametric,
    SteppedUniform,
)
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.schema import sweep_schema
from carft_sweep.sweeps.spec.settings import Asha
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

OURS = """
name: of_w_and_b
aliases:
  learning_rate: optim.lr
  batch_size: optim.batch_size
  epochs: optim.epochs
  dropout: optim.label_smoothing
  decay: optim.weight_decay
  norm: optim.batch_norm
  optimizer.lr: optim.lr
  optimizer.adamw.decay: optim.weight_decay
trial: {algorithm: car_ft}
"""


def load(folder: Path, theirs: str) -> SweepSpec:
    file = folder / "theirs.yaml"
    file.write_text(theirs + OURS)
    return load_spec(file)


ACCEPTED = {
    "the basic structure": """
program: train.py
method: bayes
metric:
  goal: minimize
  name: id/val/nll
parameters:
  learning_rate:
    min: 0.0001
    max: 0.1
  batch_size:
    values: [16, 32, 64]
  epochs:
    values: [5, 10, 15]
  norm:
    values: ["frozen", "train"]
""",
    "an entity, a project and a cap": """
program: train.py
entity: my-team
project: robust
description: a text
method: random
run_cap: 7
metric: {name: id/val/top1, goal: maximize, target: 0.9}
parameters:
  learning_rate: {distribution: log_uniform_values, min: !!float 1e-5, max: !!float 1e-3}
""",
    "random search with a distribution of each kind": """
program: train.py
method: random
metric:
  name: id/val/nll
  goal: minimize
parameters:
  batch_size:
    distribution: q_log_uniform_values
    max: 256
    min: 32
    q: 8
  dropout:
    values: [0.3, 0.4, 0.5]
  epochs:
    value: 1
  learning_rate:
    distribution: uniform
    max: 0.1
    min: 0.001
  norm:
    values: ["frozen", "train"]
""",
    "a grid": """
program: train.py
method: grid
metric: {name: id/val/nll, goal: minimize}
parameters:
  learning_rate: {values: [1e-4, 1e-3]}
  epochs: {value: 5}
""",
    "hyperband by its last iteration": """
program: train.py
method: bayes
metric:
  goal: minimize
  name: id/val/nll
parameters:
  dropout:
    values: [0.15, 0.2, 0.25, 0.3, 0.4]
  decay:
    values: [1e-5, 1e-6, 1e-7]
  epochs:
    value: 27
early_terminate:
  type: hyperband
  s: 2
  eta: 3
  max_iter: 27
""",
    "hyperband by its first iteration": """
program: train.py
method: bayes
parameters: {learning_rate: {min: 0.0001, max: 0.1}}
early_terminate:
  type: hyperband
  min_iter: 3
""",
    "a command with macros": """
program: run.py
method: random
metric:
  name: id/val/nll
parameters:
  learning_rate:
    min: 0.0001
    max: 0.1
command:
  - ${env}
  - ${interpreter}
  - ${program}
  - "--batch_size=${batch_size}"
  - ${envvar:HOME}
  - ${args_no_boolean_flags}
""",
    "parameters in parameters": """
program: train-nested.py
method: grid
parameters:
  batch_size:
    values: [32, 64]
  optimizer:
    parameters:
      lr:
        values: [0.001, 0.0001]
      adamw:
        parameters:
          decay:
            values: [0.9, 0.95]
""",
    "a version and a kind": """
apiVersion: v1
kind: sweep
method: grid
parameters: {learning_rate: {values: [1e-4]}}
""",
}


@pytest.mark.parametrize("theirs", ACCEPTED.values(), ids=list(ACCEPTED))
def test_a_file_in_w_and_bs_shape_is_read(theirs: str, tmp_path: Path) -> None:
    spec = load(tmp_path, theirs)
    assert spec.parameters
    if spec.method == "grid":
        assert spec.points()
    Draft202012Validator(sweep_schema()).validate(parse(theirs + OURS).data)


def test_bayes_runs_as_tpe_and_what_has_no_meaning_is_named(tmp_path: Path) -> None:
    spec = load(tmp_path, ACCEPTED["the basic structure"])
    assert (spec.method, spec.metric.name, spec.metric.goal) == ("tpe", "id/val/nll", "minimize")
    assert spec.parameters == (
        FloatUniform("optim.lr", 0.0001, 0.1),
        Categorical("optim.batch_size", (16, 32, 64)),
        Categorical("optim.epochs", (5, 10, 15)),
        Categorical("optim.batch_norm", ("frozen", "train")),
    )
    assert [warning.partition(": ")[2] for warning in spec.warnings] == [
        "program is W&B's and ignored here",
        "method bayes runs as tpe",
    ]


def test_a_target_ends_the_sweep_as_in_w_and_b(tmp_path: Path) -> None:
    spec = load(tmp_path, ACCEPTED["an entity, a project and a cap"])
    assert (spec.metric.target, spec.run_cap) == (0.9, 7)
    assert spec.parameters == (FloatUniform("optim.lr", 1e-5, 1e-3, log=True),)
    assert len(spec.warnings) == 3  # program, entity, project


@pytest.mark.parametrize(
    ("rule", "min_epochs", "factor"),
    [
        ("{type: hyperband, min_iter: 3}", 3, 3),
        ("{type: hyperband, min_iter: 2, eta: 2}", 2, 2),
        ("{type: hyperband, max_iter: 27, s: 2}", 3, 3),
        ("{type: hyperband, s: 2, eta: 3, max_iter: 27}", 3, 3),
        ("{type: hyperband, max_iter: 10, s: 2, eta: 3}", 1, 3),
        ("{type: hyperband, max_iter: 16, s: 3, eta: 2, strict: true}", 2, 2),
        # Brackets below one iteration do not count, as in W&B.
        ("{type: hyperband, max_iter: 9, s: 5, eta: 3}", 1, 3),
    ],
)
def test_hyperband_runs_as_asha_with_the_same_brackets(
    rule: str, min_epochs: int, factor: int, tmp_path: Path
) -> None:
    head = "method: random\nparameters: {learning_rate: {min: 0.1, max: 0.2}}\nearly_terminate: "
    spec = load(tmp_path, head + rule)
    assert spec.early_terminate == Asha(
        metric="id/val/top1", min_epochs=min_epochs, reduction_factor=factor
    )
    said = [warning.partition(": ")[2] for warning in spec.warnings]
    assert said[0] == "early_terminate hyperband runs as asha"
    assert said[1:] == (["strict is W&B's and ignored here"] if "strict" in rule else [])


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("min: 0.1, max: 10", "decay varies from 1.105 to 2.203e+04, since log_uniform takes"),
        ("min: -9.2, max: -2.3", None),
    ],
)
def test_exponents_that_look_like_values_are_warned_of(
    tmp_path: Path, ends: str, said: str | None
) -> None:
    decay = f"decay: {{distribution: log_uniform, {ends}}}"
    spec = load(tmp_path, f"method: random\nrun_cap: 2\nparameters: {{{decay}}}\n")
    warned = [warning for warning in spec.warnings if "log_uniform" in warning]
    assert len(warned) == (said is not None)
    assert all(said is not None and said in warning for warning in warned)


def test_nested_parameters_are_the_dotted_ones(tmp_path: Path) -> None:
    spec = load(tmp_path, ACCEPTED["parameters in parameters"])
    names = [dimension.name for dimension in spec.parameters]
    assert names == ["optim.batch_size", "optim.lr", "optim.weight_decay"]
    assert len(spec.points()) == 8


DISTRIBUTIONS = {
    "{value: 0.1}": Categorical,
    "{distribution: constant, value: 0.1}": Categorical,
    "{values: [0.1, 0.2]}": Categorical,
    "{distribution: categorical, values: [0.1, 0.2]}": Categorical,
    "{values: [0.1, 0.2], probabilities: [0.9, 0.1]}": Categorical,
    "{min: 1, max: 3}": IntUniform,
    "{distribution: int_uniform, min: 1, max: 3}": IntUniform,
    "{min: 0.1, max: 0.5}": FloatUniform,
    "{distribution: uniform, min: 0, max: 0.5}": FloatUniform,
    "{distribution: q_uniform, min: 0.0, max: 0.5, q: 0.1}": SteppedUniform,
    "{distribution: log_uniform, min: -5, max: -1}": FloatUniform,
    "{distribution: log_uniform_values, min: 0.01, max: 0.5}": FloatUniform,
    "{distribution: q_log_uniform, min: -5, max: -1, q: 0.1}": Parametric,
    "{distribution: q_log_uniform_values, min: 0.01, max: 0.5, q: 0.1}": Parametric,
    "{distribution: inv_log_uniform, min: 1, max: 5}": FloatUniform,
    "{distribution: inv_log_uniform_values, min: 0.01, max: 0.5}": FloatUniform,
    "{distribution: normal, mu: 0.5, sigma: 0.1}": Parametric,
    "{distribution: q_normal, mu: 0.5, sigma: 0.1, q: 0.1}": Parametric,
    "{distribution: log_normal, mu: -2, sigma: 0.5}": Parametric,
    "{distribution: q_log_normal, mu: -2, sigma: 0.5, q: 0.1}": Parametric,
    "{distribution: beta, a: 2, b: 5}": Parametric,
    "{distribution: q_beta, a: 2, b: 5, q: 0.1}": Parametric,
}


@pytest.mark.parametrize(("described", "kind"), DISTRIBUTIONS.items())
def test_each_distribution_of_w_and_b_is_read_in_a_random_search(
    described: str, kind: type, tmp_path: Path
) -> None:
    spec = load(tmp_path, f"method: random\nparameters: {{decay: {described}}}")
    (dimension,) = spec.parameters
    assert type(dimension) is kind


def test_bayes_with_a_distribution_that_it_cannot_draw_says_so(tmp_path: Path) -> None:
    theirs = "method: bayes\nparameters: {decay: {distribution: normal, mu: 0.5, sigma: 0.1}}"
    with pytest.raises(InvalidConfig, match="normal is drawn by the methods random and qmc only"):
        load(tmp_path, theirs)


GRID = "method: grid\nparameters: {learning_rate: {values: [1e-4]}}\n"
ANSWERED = {
    "a search by Optuna": (
        "method: custom\nscheduler: {engine: optuna, source: study.py, optimizer: study}\n"
        "parameters: {learning_rate: {min: 0.1, max: 0.2}}\n",
        [
            "1: method: custom hands the search to a scheduler of W&B's, which is not here",
            "2: scheduler: scheduler of W&B is not supported; leave it out",
        ],
    ),
    "a search by Ax": (
        "program: train.py\nmethod: ax\nparameters: {learning_rate: {min: 0.1, max: 0.2}}\n",
        [
            "1: program is W&B's and ignored here",
            "2: method: ax hands the search to a scheduler of W&B's, which is not here",
        ],
    ),
    "several goals with thresholds and constraints": (
        "method: random\nmetrics:\n  - {name: id/val/top1, goal: maximize, threshold: 0.94}\n"
        "  - {name: id/val/nll, goal: minimize, threshold: 100}\n"
        'metric_constraints:\n  - "latency <= 512"\n'
        "parameters: {learning_rate: {min: 0.1, max: 0.2}}\n",
        [
            "3: metrics[0].threshold: threshold of W&B is not supported; leave it out",
            "4: metrics[1].threshold: threshold of W&B is not supported; leave it out",
            "5: metric_constraints: metric_constraints of W&B is not supported; leave it out",
        ],
    ),
    "a local controller": (
        f"{GRID}controller:\n  type: local\n",
        ["3: controller: controller of W&B is not supported; leave it out"],
    ),
    "sweeps on Launch": (
        f"{GRID}job: team/robust/job:latest\nscheduler:\n  num_workers: 8\n  resource: local\n",
        [
            "3: job: job of W&B is not supported; leave it out",
            "4: scheduler: scheduler of W&B is not supported; leave it out",
        ],
    ),
    "an image on Launch": (
        f"{GRID}image_uri: team/train:latest\n",
        ["3: image_uri: image_uri of W&B is not supported; leave it out"],
    ),
    "imputed metrics": (
        f"{GRID}metric: {{name: id/val/top1, impute: best, impute_while_running: latest}}\n",
        [
            "3: metric.impute: impute of W&B is not supported; leave it out",
            "3: metric.impute_while_running: impute_while_running of W&B is not supported",
        ],
    ),
    "hyperband in a grid": (
        f"{GRID}early_terminate: {{type: hyperband, max_iter: 10, s: 2}}\n",
        ["3: early_terminate: prunes grid points"],
    ),
    "hyperband with a factor that is not whole": (
        "method: random\nparameters: {learning_rate: {min: 0.1, max: 0.2}}\n"
        "early_terminate: {type: hyperband, min_iter: 3, eta: 2.5}\n",
        ["3: early_terminate.eta: must be a valid integer, got 2.5"],
    ),
    "the template's slip": (
        "method: random\nparameter: {learning_rate: {value: 0.1}}\n",
        # That there is nothing to search follows from it, and is not said.
        ["2: parameter: unknown key 'parameter'; did you mean 'parameters'?"],
    ),
    "names of a training script": (
        "method: grid\nmetric: {name: validation_loss, goal: minimize}\n"
        'parameters:\n  optimizer: {values: ["adam", "sgd"]}\n  fc_layer_size: {values: [128]}\n',
        [
            "2: metric.name: unknown metric 'validation_loss'",
            "4: parameters.optimizer: unknown parameter 'optimizer'",
            "5: parameters.fc_layer_size: unknown parameter 'fc_layer_size'",
        ],
    ),
}


@pytest.mark.parametrize(("theirs", "expected"), ANSWERED.values(), ids=list(ANSWERED))
def test_what_is_not_here_is_answered_by_its_name_and_its_line(
    theirs: str, expected: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path, theirs)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert re.match(re.escape(f"theirs.yaml:{start}"), line), line
