"""The shipped recipes of the papers' benchmarks run end to end and land in MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from carft_sweep.sweeps.cli import main
from carft_sweep.tracking.location import EXPERIMENT
from tests import domain_bed_tree, downstream_tree, wilds_tree

ALGORITHMS = ("zero_shot", "fine_tune", "car_ft")
CLASS_ONLY = {"prompts": "{classes: class_only, contexts: class_only}"}
MERGE = {"merges": "[{name: wise_ft, alphas: [0.5]}]"}
NO_REPORT = {"report": "{page: false, model: false}"}  # which takes longer than these runs


@dataclass
class Smoke:
    """A recipe's smoke profile, run in one home as a user runs it."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    def call(self, *words: str) -> str:
        self.capsys.readouterr()
        code = main([*words, "--home", str(self.home)])
        printed = self.capsys.readouterr()
        assert code == 0, printed.err
        return printed.out + printed.err

    def run(self, recipe: str, root: Path, *profiles: str, **changes: str) -> str:
        """The recipe with these profiles and `smoke`, on the images below `root`."""
        words = [word for name in (*profiles, "smoke") for word in ("--profile", name)]
        words += sets(NO_REPORT | changes)
        return self.call("run", recipe, "--data-root", str(root), "--in-process", *words)

    def children(self, sweep: str) -> dict[str, set[str]]:
        """The runs below the sweep's own in MLflow: their names, and those of their metrics.

        Each has finished.
        """
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        (parent,) = [run for run in runs if run.info.run_name == sweep]
        own = {"mlflow.parentRunId": parent.info.run_id, "carft.kind": "run"}.items()
        children = (run for run in runs if own <= run.data.tags.items())
        return {run.info.run_name: set(run.data.metrics) for run in children}


@pytest.fixture
def smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Smoke:
    return Smoke(tmp_path / "home", capsys)


def sets(changes: Mapping[str, str]) -> list[str]:
    """What turns a recipe into a little one: words of the command."""
    return [word for change in changes.items() for word in ("--set", "=".join(change))]


def top1(*splits: str) -> set[str]:
    return {f"{split}/top1" for split in splits}


def test_domainbed(smoke: Smoke, tmp_path: Path, tiny_clip_files: Path) -> None:
    domain_bed_tree.make(tmp_path, "pacs", per_domain=10)
    # Two of the domains in turn and a smaller model, to save time; all of it below.
    little = {"parameters.data.test_domain.values": "[photo, sketch]"}
    smoke.run("domainbed", tmp_path, **little, **{"model.name": str(tiny_clip_files)})
    children, domains = smoke.children("domainbed_smoke"), ("photo", "sketch")
    assert {*children} == {f"{of} test_domain={on} s0" for of in ALGORITHMS for on in domains}
    for name, metrics in children.items():
        (domain,) = re.findall("test_domain=(.*) s0", name)
        assert metrics >= top1(*(f"ood/{domain}{part}" for part in ("", "_out", "_all")))
        assert metrics >= {"id/val/mean_group_top1", *top1("id/val", "ood/mean")}
        is_merged = "wise_ft_0.5/id/val/mean_group_top1" in metrics
        assert is_merged == (not name.startswith("zero_shot"))
        assert not [metric for metric in metrics if metric.startswith("id/test")]
    table = smoke.call("compare", "domainbed_smoke")
    assert re.search(r"^algorithm +photo +sketch +Avg$", table, re.MULTILINE)


@pytest.mark.slow
def test_domainbeds_oracle(smoke: Smoke, tmp_path: Path) -> None:
    domain_bed_tree.make(tmp_path, "pacs", per_domain=10)
    smoke.run("domainbed", tmp_path, "oracle")
    assert len(smoke.children("domainbed_oracle_smoke")) == 12
    table = smoke.call("compare", "domainbed_oracle_smoke")
    assert re.search(r"^algorithm +art_painting +cartoon +photo +sketch +Avg$", table, re.MULTILINE)
    assert table.count("oracle: settings were chosen on ood/{task}_out/top1") == 1


def test_imagenet(smoke: Smoke, imagenet_root: Path, tiny_clip_files: Path) -> None:
    # Thousands of images, which the profile's own model and merges take a minute for.
    little = {"model": f"{{name: {tiny_clip_files}}}", "baselines": "[zero_shot]", **MERGE}
    smoke.run("imagenet", imagenet_root, **little)
    children = smoke.children("imagenet_smoke")
    assert {*children} == {"zero_shot", "car_ft s0"}
    shifts = [f"ood/{name}" for name in ("v2", "r", "a", "sketch", "objectnet", "mean")]
    for metrics in children.values():
        assert metrics >= top1("id/val", "id/test", "id/test_r", "id/test_a", "gap", *shifts)
    merged = top1("wise_ft_0.5/id/test", "wise_ft_0.5/ood/objectnet")
    assert children["car_ft s0"] >= {"train/context_kl", *merged}
    table = smoke.call("compare", "imagenet_smoke")
    assert re.search(r"^setting +n +a +objectnet +r +sketch +v2$", table, re.MULTILINE)


def test_a_rival_beside_its_references_on_fresh_seeds(smoke: Smoke, tiny_clip_files: Path) -> None:
    """The shipped file, on less of everything that takes time; its grids are those of
    tests/sweeps/spec/test_recipes.py.
    """
    rivals = ("fine_tune", "car_ft", "l2_sp")
    little = {
        "baselines": "[zero_shot, {name: fine_tune, optim.lr: {values: [1e-4, 2e-3]}},"
        " {name: l2_sp, optim.weight_decay: 0.0, alpha: {values: [0.001, 1]}, optim.lr: 5e-4}]",
        "parameters.algorithm.kl_weight.values": "[1]",
        **{"model.name": str(tiny_clip_files), "eval.context_probe": "false"},
        **{"seeds": "[0]", "confirm_seeds": "[1]", "optim.epochs": "null", "optim.steps": "2"},
        **{"data.train_fraction": "0.1", "data.shifts": "[pixel]"},
        **(CLASS_ONLY | MERGE | NO_REPORT),
    }
    smoke.call("run", "rivals", "--profile", "l2_sp", "--in-process", *sets(little))
    children = smoke.children("rivals_l2_sp")
    assert len(children) == 1 + 2 * len(rivals) + len(rivals)
    tuned = {f"l2_sp alpha={alpha} s0" for alpha in ("0.001", "1")}
    assert tuned | {f"fine_tune lr={rate} s0" for rate in ("0.0001", "0.002")} <= {*children}
    assert sum(name.endswith(" s1") for name in children) == len(rivals)
    for reference in ("fine_tune", "car_ft"):
        table = smoke.call("compare", "rivals_l2_sp", "--reference", reference, "--markdown")
        confirmed = {*re.findall(r"^\| (l2_sp .*) \(confirmed\)", table, re.MULTILINE)}
        assert len(confirmed) == 1
        assert "‡" not in table, "all are tuned alike"


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (("--set", "baselines=[zero_shot, {name: ema, decay: 0.9999}]"), 2),
        pytest.param((), 13, marks=pytest.mark.slow),  # the memory of each takes seconds
    ],
)
def test_the_rivals_on_imagenet_are_planned_for_a_gpu(
    smoke: Smoke, imagenet_root: Path, tiny_clip_files: Path, changes: Sequence[str], count: int
) -> None:
    words = ["check", "imagenet", "--profile", "rivals", "--data-root", str(imagenet_root)]
    little = {"model": f"{{name: {tiny_clip_files}}}", **CLASS_ONLY}
    plan = smoke.call(*words, *changes, "--gpu", "H100", *sets(little))
    settings = dict(re.findall(r"^  (\w+) +(\d) to train$", plan, re.MULTILINE))
    assert len(settings) == count
    assert {*settings.values()} == {"5"}
    memory = dict(re.findall(r"^  (\w+), optim.batch_size 512: (.*)$", plan, re.MULTILINE))
    assert memory.keys() == settings.keys()
    assert all(re.fullmatch(r"[0-9.]+ MB", size) for size in memory.values()), memory
    assert f"{5 * count} to train ({50 * count} epochs)" in plan
    assert re.search(r"^The runs will keep at most about [0-9.]+ MB on disk", plan, re.MULTILINE)
    assert "of one H100, at 35% of its peak" in plan


def test_autoft_searches_by_ood_validation_and_says_so(
    smoke: Smoke, tmp_path: Path, tiny_clip_files: Path
) -> None:
    wilds_tree.make(tmp_path)
    little = {"model": f"{{name: {tiny_clip_files}}}", "optim.batch_size": "4"}
    little |= {"resources": "null", "workers": "0", **CLASS_ONLY, **NO_REPORT}
    search = ["run", "autoft", "--data-root", str(tmp_path), "--in-process", *sets(little)]
    smoke.call(*search, "--set", "optim.steps=2", "--set", "run_cap=2")
    assert {*smoke.children("autoft")} == {"zero_shot", "autoft #0 s0", "autoft #1 s0"}
    final = {"seeds": "[0]", "optim.epochs": "null", "optim.steps": "2", "optim.warmup": "0"}
    final |= {"baselines": "[zero_shot, fine_tune]", **MERGE}
    smoke.call(*search, "--profile", "final", *sets(final))
    children = smoke.children("autoft_final")
    assert len(children) == 3
    assert "wise_ft_0.5/ood/test/macro_f1" in children["autoft #0 s0"]
    for form in ((), ("--markdown",), ("--latex",)):
        text = " ".join(smoke.call("compare", "autoft_final", *form).split())
        assert "OOD validation: settings were chosen by ood/val/macro" in text.replace("\\", "")


def test_downstream(
    smoke: Smoke, tmp_path: Path, tiny_clip_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("dtd", "oxford_pets"):  # neither needs a checksum of torchvision's replaced
        downstream_tree.make(tmp_path, family, monkeypatch)
    little = {"model.name": str(tiny_clip_files)}
    assert " epoch " in smoke.run("downstream", tmp_path, **little)
    assert " epoch " not in smoke.run("downstream", tmp_path, **little)  # none is trained again
    children = smoke.children("downstream_smoke")
    other = {"dtd": "oxford_pets", "oxford_pets": "dtd"}
    assert len(children) == 6
    for name, metrics in children.items():
        (family,) = re.findall("family=([a-z_]+)", name)
        retention = f"retention/{other[family]}"
        assert metrics >= top1("id/val", "id/test", retention, "retention/mean", "retention/gain")
        assert ("id/test/mean_per_class_top1" in metrics) == (family == "oxford_pets")
        assert not [metric for metric in metrics if metric.startswith("ood/")]
    table = smoke.call("compare", "downstream_smoke")
    assert re.search(r"^algorithm +dtd +oxford_pets +Avg$", table, re.MULTILINE)
    assert re.search(r"^setting .* other tasks +kept there$", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("profiles", "sweep", "criterion", "words"),
    [
        ((), "wilds_smoke", "macro_f1", "macro-F1"),
        pytest.param(
            *(("fmow",), "wilds_fmow_smoke", "worst_group_top1", "worst-group accuracy"),
            marks=pytest.mark.slow,  # tests/carft_core/data/families has what differs
        ),
    ],
)
def test_wilds(
    smoke: Smoke, tmp_path: Path, profiles: tuple[str, ...], sweep: str, criterion: str, words: str
) -> None:
    wilds_tree.make(tmp_path)
    smoke.run("wilds", tmp_path, *profiles)
    children = smoke.children(sweep)
    assert {*children} == {"zero_shot", "fine_tune s0", "car_ft s0"}
    for metrics in children.values():
        for split in ("id/val", "id/test", "ood/val", "ood/test"):
            assert metrics >= {f"{split}/top1", f"{split}/{criterion}"}
    assert f"wise_ft_0.5/ood/test/{criterion}" in children["car_ft s0"]
    table = smoke.call("compare", sweep, "--columns", f"id/test/{criterion},ood/test/top1")
    assert f"judged by {words}" in " ".join(table.split())
    assert re.search(r"^setting +n +ID test +ood/test/top1$", table, re.MULTILINE)
