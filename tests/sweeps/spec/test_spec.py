"""A sweep file becomes a sweep: every way to write it means the same, and selection is honest."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.config.trial import field_names, trial_config
from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.carft_core.evaluation.measure import summary
from carft_sweep.sweeps.space.parameters import DISTRIBUTIONS
from carft_sweep.sweeps.space.points import draw_point, hashed
from carft_sweep.sweeps.spec import settings as file_settings
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.metrics import NAMES, natural_goal, problem
from carft_sweep.sweeps.spec.normalize import IGNORED, KEYS
from carft_sweep.sweeps.spec.settings import METHODS, Asha, Metric, RaceSeeds, Resources, Retries
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec, recipes
from carft_sweep.tracking.comparison.spec import looks_at_tests
from tests.sweeps.spec.validator import VALIDATOR

Load = Callable[..., SweepSpec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a sweep file from its text."""

    def loaded(text: str, *overrides: str) -> SweepSpec:
        file = tmp_path / "x.yaml"
        file.write_text(text)
        return load_spec(file, overrides)

    return loaded


TRIAL = "trial: {algorithm: car_ft}\n"
BENCHMARKS = ("domainbed", "downstream", "imagenet", "wilds")
"""Recipes that want published data and a GPU."""


@pytest.mark.parametrize("name", recipes())
def test_a_shipped_recipe_has_its_files_name_suits_the_schema_and_has_an_equal_canonical_form(
    name: str, load: Load
) -> None:
    spec = load_spec(name)
    assert (spec.name, spec.source_path) == (name, recipes()[name])
    assert spec.text == recipes()[name].read_text()
    first = spec.text.splitlines()[0]
    assert (first[:2], first[-1]) == ("# ", "?")
    assert not spec.warnings
    VALIDATOR.validate(parse(spec.text).data)
    VALIDATOR.validate(spec.as_dict())
    assert load(yaml.safe_dump(spec.as_dict(), sort_keys=False)).as_dict() == spec.as_dict()


@pytest.mark.parametrize("name", sorted({*recipes()} - {*BENCHMARKS, "autoft", "rivals"}))
def test_a_shipped_recipe_runs_in_minutes_on_the_built_in_data(name: str) -> None:
    spec = load_spec(name)
    configs = [spec.config_for(point) for point in spec.points()]
    configs += [point.config for point in spec.baseline_configs()]
    trained = [config for config in configs if config.algorithm.trains]
    assert len(trained) * len(spec.seeds) <= 25  # at less than 20 seconds each
    builtin = {(config.model.name, config.data.family) for config in configs}
    assert builtin == {("builtin", "icon_shift")}


def test_a_recipe_is_found_by_name_by_file_and_in_its_folder_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for written in ("kl_weight", "kl_weight.yaml", "sweeps/kl_weight.yaml"):
        assert load_spec(written).source_path == recipes()["kl_weight"]
    (tmp_path / "kl_weight.yaml").write_text(f"name: mine\n{TRIAL}")
    assert load_spec("kl_weight.yaml").name == "mine"
    with pytest.raises(RequestError, match=r"unknown sweep file 'other/kl_weight\.yaml'"):
        load_spec("other/kl_weight.yaml")


def test_a_file_with_name_and_algorithm_alone_is_one_trial_with_the_defaults(load: Load) -> None:
    spec = load(f"name: x\n{TRIAL}")
    assert (spec.method, spec.seeds, spec.seed, spec.run_cap) == ("grid", (0,), 0, None)
    assert spec.goals == (spec.metric,) == (Metric(name="id/val/top1", goal="maximize"),)
    assert (spec.selection.rule, spec.report.id_margin) == ("best_val", 0.005)
    assert spec.retries == Retries(crashed=1, timeout=1, preempted=10, out_of_memory=3)
    assert (spec.early_terminate, spec.race_seeds, spec.try_first) == (None, None, ())
    assert (spec.confirm_seeds, spec.imports) == ((), ())
    assert (spec.time_budget, spec.timeout, spec.breaker) == (None, None, 5)
    assert (spec.engine, spec.parallel) == ("auto", "auto")
    assert (spec.resources, spec.points()) == (Resources(cpus=None, gpus=None, custom={}), [{}])
    assert spec.config_for({}) == trial_config({"algorithm": "car_ft"})
    assert spec.baseline_configs() == []


def test_nested_and_dotted_fields_and_short_names_mean_the_same(load: Load) -> None:
    flat = load("name: x\ntrial:\n  algorithm: {name: car_ft}\n  optim: {clip: null}\n")
    other = load("name: x\ntrial: {algorithm: car_ft, optim.clip: null}\n")
    assert other.as_dict() == flat.as_dict()
    vit = load("name: x\ntrial: {algorithm: car_ft, model: builtin_vit}\n")
    named = "name: x\ntrial: {algorithm: car_ft, model: {name: ViT-B-32, pretrained: openai}}\n"
    assert load(named, "model=builtin_vit").trial == vit.trial


WHOLE = """
name: x
method: nsga2
metrics:
  - {name: id/val/top1}
  - {name: id/val/nll, merge: wise_ft@0.5}
parameters:
  optim.lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}
  optim.batch_norm: {values: [frozen, train]}
  optim.epochs: {min: 2, max: 8, q: 2}
seeds: 3
confirm_seeds: 5
race_seeds: {margin: 0.02}
run_cap: 30
time_budget: 2h30m
try_first:
  - {optim.lr: 1e-4, optim.batch_norm: train}
  - {optim.epochs: 4.0}
early_terminate: {type: asha, min_epochs: 2, reduction_factor: 3}
retries: {crashed: 2, preempted: 4}
timeout: 90
breaker: 0
engine: ray
parallel: 8
resources: {cpus: 2, gpus: 0.333, custom: {big_memory: 1}}
import: json
trial: {algorithm: car_ft, merges: [wise_ft]}
"""


def test_every_setting_is_read_and_survives_the_canonical_form(load: Load) -> None:
    spec = load(WHOLE)
    assert spec.metric == spec.goals[0] == Metric(name="id/val/top1", goal="maximize")
    assert spec.goals[1] == Metric(name="id/val/nll", goal="minimize", merge="wise_ft@0.5")
    assert spec.confirm_seeds == (3, 4, 5, 6, 7)
    assert spec.race_seeds == RaceSeeds(margin=0.02, after=1)
    assert (spec.run_cap, spec.time_budget, spec.timeout) == (30, 9000.0, 90.0)
    assert spec.try_first == ({"optim.lr": 1e-4, "optim.batch_norm": "train"}, {"optim.epochs": 4})
    assert type(spec.try_first[1]["optim.epochs"]) is int
    assert spec.early_terminate == Asha(metric="id/val/top1", min_epochs=2, reduction_factor=3)
    assert spec.retries == Retries(crashed=2, timeout=1, preempted=4, out_of_memory=3)
    assert (spec.breaker, spec.engine, spec.parallel) == (0, "ray", 8)
    assert spec.resources == Resources(cpus=2, gpus=0.3333, custom={"big_memory": 1.0})
    assert spec.imports == ("json",)
    VALIDATOR.validate(parse(WHOLE).data)
    VALIDATOR.validate(spec.as_dict())
    again = load(yaml.safe_dump(spec.as_dict(), sort_keys=False))
    assert again.as_dict() == spec.as_dict()
    assert (again.goals, again.early_terminate) == (spec.goals, spec.early_terminate)


def test_what_confirms_follows_the_largest_seed_or_is_named(load: Load) -> None:
    after = (("3", "2", (3, 4)), ("[7, 2]", "3", (8, 9, 10)))
    for seeds, written, fresh in (*after, ("[7, 2]", "[0, 1]", (0, 1)), ("1", "null", ())):
        file = f"name: x\nseeds: {seeds}\n{TRIAL}"
        assert load(file, f"confirm_seeds={written}").confirm_seeds == fresh
        assert load(f"confirm_seeds: {written}\n{file}").confirm_seeds == fresh


def test_every_method_of_search_wants_parameters(load: Load) -> None:
    parameters = "parameters: {optim.lr: {min: 1e-5, max: 1e-3}}\n"
    for method in {*METHODS} - {"grid"}:
        text = f"name: x\nmethod: {method}\n{TRIAL}"
        with pytest.raises(InvalidConfig, match=r"x\.yaml:2: method: searches parameters, and th"):
            load(text)
        assert load(text + parameters).method == method


def test_early_termination_goes_by_the_sweeps_metric_where_epochs_report_it(load: Load) -> None:
    text = "name: x\nmethod: tpe\nparameters: {optim.lr: {min: 1e-5, max: 1e-3}}\n"
    text += "early_terminate: {type: median}\nmetric: {name: ood/dark/top1}\nselection: oracle\n"
    every = "trial: {algorithm: car_ft, eval: {every_epoch: true}}\n"
    of_train = "early_terminate.metric=train/loss"
    for spec, metric in (
        (load(text + every), "ood/dark/top1"),
        (load(text + TRIAL, of_train), "train/loss"),
    ):
        assert spec.early_terminate is not None
        assert spec.early_terminate.metric == metric
    with pytest.raises(InvalidConfig, match=r"such as metric: id/val/top1; ood/dark/top1 comes la"):
        load(text + TRIAL)


SPACE = (
    "name: x\nmethod: random\nrun_cap: 100\nparameters:\n"
    "  algorithm.name: {values: [car_ft, fine_tune]}\n"
    "  algorithm.kl_weight: {distribution: log_uniform_values, min: 0.1, max: 10}\n"
    "  optim.batch_size: {distribution: q_log_uniform_values, min: 8, max: 256, q: 8}\n"
    "  optim.lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}\n"
    "  optim.warmup: {min: 0.0, max: 0.5, q: 0.1}\n"
    "  optim.epochs: {min: 2, max: 9, q: 3}\n"
    "  optim.batch_norm: {values: [frozen, train], when: {algorithm.name: car_ft}}\n"
)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_space_draws_may_be_tried_first(load: Load, seed: int) -> None:
    space = load(SPACE).parameters
    points = [draw_point(space, functools.partial(hashed, seed, index), {}) for index in range(10)]
    text = SPACE + yaml.safe_dump({"try_first": points}, sort_keys=False)
    assert load(text).try_first == tuple(points)


def test_what_broken_yaml_refuses_is_taken_where_the_file_says_so(load: Load) -> None:
    rule = load(f"name: x\nearly_terminate: {{type: median, allow_grid: true}}\n{TRIAL}")
    assert rule.early_terminate is not None
    assert rule.early_terminate.allow_grid
    oracle = load(f"name: x\nmetric: {{name: ood/mean/top1}}\nselection: oracle\n{TRIAL}")
    assert oracle.selection.rule == "oracle"
    merged = "name: x\nmetric: {name: id/val/top1, merge: wise_ft@0.5}\n"
    varied = f"{merged}parameters: {{merges: {{values: [[wise_ft], []]}}}}\n{TRIAL}"
    with pytest.raises(InvalidConfig, match=r"x\.yaml:2: metric\.merge: unknown merge point"):
        load(varied)
    assert load(varied, "parameters.merges.values=[[wise_ft]]").metric.merge == "wise_ft@0.5"
    for name in ("from_checkpoint", "uniform_soup"):
        spec = load(f"{merged}trial: {{algorithm: {name}, merges: [wise_ft]}}\n")
        assert spec.metric.merge == "wise_ft@0.5"


def test_a_number_of_retries_is_for_crashes_and_timeouts(load: Load) -> None:
    text = f"name: x\nretries: 4\n{TRIAL}"
    four = Retries(crashed=4, timeout=4)
    assert load(text).retries == four
    assert load(text).as_dict()["retries"] == four.model_dump()
    assert load(text, "retries.preempted=7").retries == four.model_copy(update={"preempted": 7})
    assert load(text, "retries=0").retries == Retries(crashed=0, timeout=0)


def test_an_import_that_fails_is_the_only_mistake_that_is_told(load: Load, tmp_path: Path) -> None:
    (tmp_path / "broken_on_purpose.py").write_text("1 / 0\n")
    text = "name: x\nimport: ./broken_on_purpose.py\ntrial: {algorithm: mine}\n"
    with pytest.raises(InvalidConfig, match="ZeroDivisionError") as caught:
        load(text)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("x.yaml:2: import: ")


def test_a_capped_grid_has_its_first_points_and_baselines_follow(load: Load) -> None:
    rates = "parameters: {optim.lr: {values: [1e-4, 1e-3, 1e-2]}}\n"
    spec = load(f"name: x\nrun_cap: 2\n{rates}baselines: [fine_tune]\n{TRIAL}")
    assert spec.points() == [{"optim.lr": 1e-4}, {"optim.lr": 1e-3}]
    assert len(spec.baseline_configs()) == spec.trial_count == 2


def test_in_a_search_an_untuned_baseline_is_marked(load: Load) -> None:
    text = f"name: x\nmethod: tpe\nbaselines: [zero_shot, fine_tune]\n{TRIAL}"
    for parameter, untuned in {"optim.lr": True, "algorithm.kl_weight": False}.items():
        spec = load(f"{text}parameters: {{{parameter}: {{min: 0.1, max: 0.5}}}}\n")
        baselines = spec.baseline_configs()
        assert [point.untuned for point in baselines] == [False, untuned]
        assert [point.params for point in baselines] == [{}, {}]
        assert baselines[1].config.optim == trial_config({"algorithm": "fine_tune"}).optim
        with pytest.raises(ValueError, match="not known before it runs"):
            spec.points()


@pytest.mark.parametrize("method", ["random", "qmc"])
def test_where_points_are_drawn_a_baseline_runs_at_each(load: Load, method: str) -> None:
    spec = load(
        f"name: x\nmethod: {method}\nrun_cap: 6\nparameters:\n"
        "  optim.lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}\n"
        "  algorithm.kl_weight: {min: 0.1, max: 0.5}\n"
        "try_first: [{optim.lr: 1e-4}]\n"
        f"baselines: [zero_shot, fine_tune]\n{TRIAL}"
    )
    points = spec.points()
    assert points[0]["optim.lr"] == 1e-4
    assert len({point["algorithm.kl_weight"] for point in points}) == spec.trial_count == 6
    zero_shot, *tuned = spec.baseline_configs()
    assert (zero_shot.algorithm, zero_shot.params) == ("zero_shot", {})
    rates = [point["optim.lr"] for point in points]
    assert [baseline.params for baseline in tuned] == [{"optim.lr": rate} for rate in rates]
    assert [baseline.config.optim.lr for baseline in tuned] == rates
    assert not any(baseline.untuned for baseline in tuned)


def test_a_baseline_may_fix_fields_of_its_own_or_have_a_grid_of_its_own(load: Load) -> None:
    spec = load(
        "name: x\nparameters: {optim.lr: {values: [1e-4, 1e-3]}}\nbaselines:\n"
        "  - {name: flyp, optim.lr: {values: [1e-6, 1e-5]}, optim.weight_decay: 0.2}\n"
        "  - {name: l2_sp, alpha: {values: [0.1, 1]}}\n"
        "  - {name: ema, of: car_ft, decay: 0.5, optim.lr: 1e-4}\n"
        "  - zero_shot\n"
        f"{TRIAL}"
    )
    baselines = spec.baseline_configs()
    grid = [{"algorithm.alpha": alpha, "optim.lr": lr} for alpha in (0.1, 1) for lr in (1e-4, 1e-3)]
    assert [(baseline.algorithm, baseline.params) for baseline in baselines] == [
        ("flyp", {"optim.lr": 1e-6}),  # its own values, not those of the trials
        ("flyp", {"optim.lr": 1e-5}),
        *(("l2_sp", params) for params in grid),
        ("ema", {}),
        ("zero_shot", {}),
    ]
    optims = [baseline.config.optim for baseline in baselines]
    assert [optim.lr for optim in optims[:7]] == [1e-6, 1e-5, *[1e-4, 1e-3] * 2, 1e-4]
    assert [optim.weight_decay for optim in optims] == [0.2, 0.2, *[0.1] * 6]
    alphas = [baseline.config.as_dict()["algorithm"].get("alpha") for baseline in baselines[2:6]]
    assert alphas == [0.1, 0.1, 1, 1]
    assert baselines[6].config.as_dict()["algorithm"]["decay"] == 0.5
    # Two settings at one trial's values, with a trial's number for a name, would be one name.
    assert [point.number for point in baselines[:6]] == [None] * 6
    assert load(json.dumps(spec.as_dict())).baseline_configs() == baselines


def test_a_wrong_field_of_a_baseline_is_named(load: Load) -> None:
    for baseline, message in {
        "name: flyp, optim.lrr: 1": "baselines[0].optim.lrr: unknown field of flyp or optim",
        "name: flyp, optim.lr: -1": "baselines[0].optim.lr: must be greater than 0",
        "name: l2_sp, alpha: {values: [1, 1]}": "alpha.values[1]: 1 is in the list twice",
        "name: l2_sp, alpha: {values: [-1, 1]}": "baselines[0].alpha: must be",
        "name: zero_shot, optim.lr: 1e-3": "zero_shot trains nothing, so this changes nothing",
        "name: flyp, data.family: pacs": "baselines[0].data.family: unknown field of flyp",
    }.items():
        with pytest.raises(InvalidConfig) as caught:
            load(f"name: x\nbaselines: [{{{baseline}}}]\n{TRIAL}")
        (line,) = str(caught.value).splitlines()
        assert message in line


def test_where_the_algorithm_varies_each_point_uses_the_fields_that_it_has(load: Load) -> None:
    spec = load(
        "name: x\nparameters:\n  algorithm.name: {values: [fine_tune, car_ft]}\n"
        "  algorithm.kl_weight: {values: [0.1, 1.0]}\nbaselines: [zero_shot]\n"
        "trial: {algorithm: {kl_direction: student_teacher}}\n"
    )
    made = [spec.config_for(point).algorithm for point in spec.points()]
    assert [item.name for item in made] == ["fine_tune", "car_ft", "car_ft"]
    assert made[2].model_dump()["kl_direction"] == "student_teacher"
    assert [point.params for point in spec.baseline_configs()] == [{}]


def test_overrides_reach_every_field_and_setting_and_the_last_one_wins(load: Load) -> None:
    text = "name: x\ntrial: {algorithm: car_ft, optim: {lr: 1e-5}}\n"
    for override in ("optim.lr=3e-4", "trial.optim.lr=3e-4", "optim={lr: 3e-4}"):
        assert load(text, override).config_for({}).optim.lr == 3e-4
    assert load(text, "data.root=a=b").config_for({}).data.root == "a=b"
    text = f"name: x\nselection: best_val\nparameters: {{optim.lr: {{values: [1e-4]}}}}\n{TRIAL}"
    overrides = [
        *("name=y", "seeds=[4, 5]", "seeds=2", "metric.name=id/val/nll", "selection.within=0.01"),
        *("parameters.optim.lr.values=[1e-4, 1e-3]", "parameters.algorithm.kl_weight={value: 2.0}"),
        "baselines=[zero_shot]",
    ]
    spec = load(text, *overrides)
    assert (spec.name, spec.seeds, spec.metric.goal) == ("y", (0, 1), "minimize")
    assert (spec.selection.rule, spec.selection.within) == ("within", 0.01)
    points = [{"optim.lr": lr, "algorithm.kl_weight": 2.0} for lr in (1e-4, 1e-3)]
    assert spec.points() == points
    assert [*spec.overrides] == overrides
    # One can take a parameter away and fix its field.
    with pytest.raises(InvalidConfig, match=r"--set optim\.lr=1: optim\.lr: is set here and al"):
        load(text, "optim.lr=1")
    spec = load(text, "parameters.optim.lr=null", "optim.lr=1")
    assert (spec.points(), spec.config_for({}).optim.lr) == ([{}], 1)


def test_a_wrong_override_is_named_as_it_was_given(load: Load) -> None:
    for override, message in {
        "optim.lr=-1": "--set optim.lr=-1: optim.lr: must be greater than 0, got -1",
        "optim.lr": "--set optim.lr: must be key=value",
        "lr=1": "--set lr=1: unknown key 'lr'; did you mean 'optim.lr'?",
        "seeds=[]": "--set seeds=[]: seeds: must be a list of seeds, or how many",
        "seeds.0=7": "--set seeds.0=7: seeds.0: seeds is no mapping; set it as a whole",
        "name.x=7": "--set name.x=7: name.x: name is no mapping; set it as a whole",
        "parameters.lr.value=1": "unknown parameter 'lr'; did you mean 'optim.lr'?",
        "parameters={}": "--set parameters={}: parameters are set one by one",
        "name=!!set {a}": "--set name=!!set {a}: the tag !!set is not allowed",
        "import=mine": "--set import=mine: modules are named in the file, or with --import",
    }.items():
        with pytest.raises(InvalidConfig) as caught:
            load(f"name: x\nseeds: [0]\n{TRIAL}", override)
        assert message in str(caught.value)


def test_every_metric_of_an_evaluation_has_a_known_name_and_direction() -> None:
    quantities = {"top1": 0.5, "nll": 1.0, "ece": 0.1, "brier": 0.2}
    splits = dict.fromkeys(("id/val", "id/test", "ood/outline", "ood/3d"), quantities)
    retained = ("retention/dtd/top1", "retention/mean/top1", "retention/gain/top1")
    names = [*summary(splits, splits), *retained]
    assert [name for name in [*names, *NAMES] if problem(name)] == []
    own = {f"id/val/{quantity}" for quantity in quantities}
    assert {name for name in names if not looks_at_tests(name)} == own
    assert not looks_at_tests("ood/val/macro_f1")
    assert looks_at_tests("ood/val_2/macro_f1")
    top1 = {f"{split}/top1" for split in (*splits, "ood/mean")}
    assert {name for name in names if natural_goal(name) == "maximize"} == {
        *(*top1, "hmean/top1", "gain/ood/top1", *retained)
    }


def test_the_reference_page_names_every_key_field_recipe_method_and_distribution() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sweep-file.md").read_text()
    text = re.sub(r'<a id="(\S+)"></a>', "", page)  # the anchors of its rows
    rows = dict(re.findall(r"^\| \[?`([^`]+)`[^|]* \|(?:.*\|)? (.+) \|$", text, re.MULTILINE))
    fields = {name for name in field_names() if not name.startswith("algorithm.of.")}
    named = {*KEYS, *Metric.model_fields, *fields, *recipes()} - {"algorithm.name"}
    assert [name for name in sorted(named) if not rows.get(name, "").strip()] == []
    rules = file_settings.EARLY_TERMINATION
    models = (*rules.values(), RaceSeeds, Resources, Retries)
    names = {name for model in models for name in model.model_fields}
    names |= {*METHODS, *rules, *DISTRIBUTIONS, *IGNORED}
    assert {name for name in names if not re.search(rf"[`{{ ]{name}[`:,]", text)} == set()


def test_a_sweep_has_the_name_of_its_file(tmp_path: Path) -> None:
    names = {"kl_weight.yaml": "kl_weight", "my sweep (2).yml": "my-sweep-2", "_ä.yaml": "sweep"}
    for file, name in names.items():
        (tmp_path / file).write_text(f"{TRIAL}profiles: {{p: {{name: '{{name}}-p'}}}}\n")
        for overrides, expected in (([], name), (["profile=p"], f"{name}-p"), (["name=y"], "y")):
            assert load_spec(tmp_path / file, overrides).name == expected


def test_an_architecture_without_weights_is_refused_with_its_line(load: Load) -> None:
    with pytest.raises(RequestError, match=r"x\.yaml:4: model\.name: RN50 alone has random"):
        load("trial:\n  algorithm: fine_tune\n  model:\n    name: RN50\n")
    varied = "trial: {algorithm: fine_tune}\nparameters:\n  model.name:\n    values:\n"
    varied += "      - builtin\n      - RN5O\n"
    with pytest.raises(RequestError, match=r"x\.yaml:6: .*unknown model 'RN5O'; near.* RN50"):
        load(varied)
    assert load(varied, "parameters.model.name.values=[builtin]").trial_count == 1
