"""`check`: the plan of a sweep, how long it takes by what was measured, and whether it can be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.models.source import find_model
from carft_sweep.carft_core.training.memory import RunCost
from carft_sweep.sweeps.engines.resources import Gpu, Node
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.plan import estimate
from carft_sweep.sweeps.plan.estimate import RemainingWork, RunTimes, TimedRun, times_of
from tests.sweeps.conftest import ONE_RUN, TOY, Carft, ToySweep

WEIGHTS = {"algorithm.kl_weight": {"min": 0.1, "max": 1.0}}
RANDOM: dict[str, Any] = {"method": "random", "parameters": WEIGHTS, "run_cap": 3}
CONFIG = {"algorithm": {"name": "fine_tune"}, "device": "cpu"}
NINE = {"name": "wise_ft", "alphas": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}
NINE_ALPHAS = {"algorithm": {"name": "car_ft"}, "merges": [NINE], "device": "cpu"}
FEW_ALPHAS = "! so few alphas of wise_ft say little of its curve"


def check(toy: ToySweep, carft: Carft, *more: str, **changes: Any) -> str:
    return carft("check", toy.file(**changes), *more).out


def plan(toy: ToySweep, carft: Carft, *more: str, **changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = carft("check", toy.file(**changes), "--json", *more).json
    return document


def timed(step: float = 1.0, **changes: Any) -> TimedRun:
    config = trial_config({**CONFIG, **changes}).as_dict()
    return TimedRun(config, RunTimes(step, 0.0, 0.0))


def test_a_plan_warns_of_a_search_that_is_random_and_of_few_alphas(
    toy_cli: ToySweep, carft: Carft
) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({**RANDOM, "method": "tpe"}, ["! the first 10 trials of tpe are random", FEW_ALPHAS]),
        ({**RANDOM, "method": "tpe", "run_cap": 11}, [FEW_ALPHAS]),
        ({"baselines": []}, []),
        ({"trial": NINE_ALPHAS}, []),
    ]
    for changes, warned in cases:
        lines = check(toy_cli, carft, **changes).splitlines()
        hints = [line for line in lines if "are random" in line or "alphas" in line]
        assert [hint.partition(":")[0] for hint in hints] == warned


def test_a_plan_counts_what_is_done_and_what_is_left(toy_cli: ToySweep, carft: Carft) -> None:
    first = plan(toy_cli, carft)
    assert (first["runs"], first["done"], first["to_evaluate"], first["to_train"]) == (7, 0, 1, 6)
    assert (first["seconds"], toy_cli.home.path.exists()) == (None, False)
    toy_cli.run()
    later = plan(toy_cli, carft, "--set", "seeds=3")
    assert (later["runs"], later["done"], later["reused"], later["to_train"]) == (10, 7, 0, 3)
    assert later["seconds"] is not None
    other = plan(toy_cli, carft, name="other")
    assert (other["done"], other["reused"], other["to_train"]) == (7, 7, 0)
    assert "7 done already (7 reused)" in check(toy_cli, carft, name="other")


def test_the_disk_that_the_runs_keep_is_by_the_models_size(
    toy_cli: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = find_model("builtin").weights.stat().st_size
    assert plan(toy_cli, carft)["disk_bytes"] == 6 * weights
    text = check(toy_cli, carft)
    assert f"The runs will keep at most about {6 * weights / 1e6:.1f} MB on disk." in text
    no_models = ("--set", "trial.keep.weights=false")
    assert plan(toy_cli, carft, *no_models)["disk_bytes"] == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10**6))
    assert "! the runs will keep about" in (text := check(toy_cli, carft))
    assert "and 1.0 MB is free in " in text


def test_a_run_that_was_cut_off_needs_only_what_it_lacks(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.run()
    whole = plan(toy_cli, carft, "--set", "seeds=3")["epochs"]
    digest = toy_cli.ledger().trials()[0].runs["0"]
    folder = toy_cli.home.runs / digest
    (folder / "trained.json").unlink()
    write_json(folder / "history.json", read_json(folder / "history.json")[:2])
    (folder / "checkpoint.pt").write_text("")
    per_run = whole // 3
    assert plan(toy_cli, carft, "--set", "seeds=3")["epochs"] == whole + per_run - 1
    (folder / "checkpoint.pt").unlink()
    assert plan(toy_cli, carft, "--set", "seeds=3")["epochs"] == whole + per_run


def test_runs_that_a_sampler_has_yet_to_choose_are_counted_as_typical_ones(
    toy_cli: ToySweep, carft: Carft
) -> None:
    planned = plan(toy_cli, carft, **RANDOM)
    assert (planned["trials"], planned["unknown"], planned["to_train"]) == (3, 6, 2)
    assert planned["epochs"] % 8 == 0
    toy_cli.run(**{**RANDOM, "run_cap": 2})
    planned = plan(toy_cli, carft, **RANDOM)
    assert (planned["unknown"], planned["done"]) == (2, 7)
    assert "and 2 runs at points that random has yet to choose" in check(toy_cli, carft, **RANDOM)


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_a_search_of_a_space_with_fewer_points_than_trials_is_planned_by_the_points(
    toy_cli: ToySweep, carft: Carft, method: str
) -> None:
    space = {"algorithm.kl_weight": {"values": [0.1, 0.3, 1.0]}}
    changes: dict[str, Any] = {"method": method, "parameters": space, "run_cap": 20}
    planned = plan(toy_cli, carft, **changes)
    assert (planned["trials"], planned["points"], planned["runs"]) == (20, 3, 9)
    assert (planned["unknown"], planned["at_most"]) == (6, True)
    text = check(toy_cli, carft, **changes)
    assert "the space has 3 different points: the other trials repeat them" in text
    toy_cli.run(**{**changes, "run_cap": 2})
    tried = len(set(toy_cli.values()))
    planned = plan(toy_cli, carft, **changes)
    assert (planned["runs"], planned["unknown"]) == (9, 2 * (3 - tried))
    toy_cli.run(**changes)
    planned = plan(toy_cli, carft, **changes)
    assert planned["done"] == 3 + 2 * len(set(toy_cli.values()))


PRUNED: dict[str, Any] = {
    "parameters": {"algorithm.kl_weight": {"values": [0.3, 0.4, 2.0, 3.0]}},
    "early_terminate": {"type": "median", "startup_trials": 1, "allow_grid": True},
}


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_finished_sweep_with_pruned_trials_leaves_nothing_to_do(
    toy_cli: ToySweep, carft: Carft, method: str
) -> None:
    changes = {**PRUNED, "method": method, "baselines": []}
    toy_cli.run(**changes)
    assert {trial.state for trial in toy_cli.ledger().trials()} == {"complete", "pruned"}
    planned = plan(toy_cli, carft, **changes)
    assert (planned["to_train"], planned["unknown"], planned["epochs"]) == (0, 0, 0)
    # Other rules judge every trial anew.
    changes["early_terminate"] = {"type": "patience", "allow_grid": True}
    planned = plan(toy_cli, carft, **changes)
    assert planned["to_train"] + planned["unknown"] > 0


def test_a_search_with_a_point_twice_can_be_finished(toy_cli: ToySweep, carft: Carft) -> None:
    space = {
        "optim.clip": {"values": [None, 1.0]},
        "algorithm.kl_weight": {"min": 0.1, "max": 1.0, "when": {"optim.clip": 1.0}},
    }
    changes: dict[str, Any] = {**RANDOM, "run_cap": 6, "parameters": space, "baselines": []}
    toy_cli.run(**changes)
    runs = {digest for trial in toy_cli.ledger().trials() for digest in trial.runs.values()}
    assert len(runs) < 12
    planned = plan(toy_cli, carft, **changes)
    assert (planned["runs"], planned["done"], planned["unknown"]) == (len(runs), len(runs), 0)


def test_what_decides_on_the_search_is_shown(toy_cli: ToySweep, carft: Carft) -> None:
    goals = [{"name": "id/val/top1"}, {"name": "id/val/nll"}]
    text = check(toy_cli, carft, metrics=goals)
    assert "goal: maximize id/val/top1, minimize id/val/nll" in text
    assert not plan(toy_cli, carft, **RANDOM)["at_most"]
    changes: dict[str, Any] = {
        "metric": {"name": "id/val/top1", "target": 0.9},
        "time_budget": "2h",
        "try_first": [{"algorithm.kl_weight": 0.5}],
        "early_terminate": {"type": "median", "min_epochs": 100},
        "race_seeds": {"margin": 0.02},
    }
    text = check(toy_cli, carft, **RANDOM, **changes)
    for line in (
        "goal: maximize id/val/top1",
        "ends when id/val/top1 has reached 0.9",
        "run_cap: 3 trials",
        "time budget: 2 h 0 min over all executions",
        "tries 1 given points first",
        "stops trials early: median on id/val/top1",
        "none: median first looks after epoch 100 of ",
        "stops seeds early: after 1, when worse by more than 0.02",
        "to train (at most ",
    ):
        assert line in text


def test_the_time_comes_from_the_runs_most_like_it_and_adds_up() -> None:
    config = trial_config(CONFIG)
    same, other_algorithm = timed(1.0), timed(2.0, algorithm={"name": "car_ft"})
    incomparable = [timed(4.0, optim={"batch_size": 7}), timed(9.0, device="cuda")]
    for runs, expected in (
        ([same, other_algorithm, *incomparable], same.times),
        ([other_algorithm, *incomparable], other_algorithm.times),
        (incomparable, None),
        ([same, timed(2.0), timed(4.0), other_algorithm], timed(2.0).times),
    ):
        assert times_of(config, runs) == expected
    known = [TimedRun(config.as_dict(), RunTimes(0.5, 3.0, 7.0))]
    work = [RemainingWork(config, *parts) for parts in ((100, 2, 3), (10, 1, 1), (0, 0, 2))]
    planned = estimate.SweepEstimate("toy", "grid", 2, 3, at_once=2, work=work)
    planned.add_times(known)
    assert planned.seconds == pytest.approx(110 * 0.5 + 3 * 3.0 + 6 * 7.0)
    assert planned.wall_seconds == pytest.approx((110 * 0.5 + 3 * 3.0 + 6 * 7.0) / 2)
    unknown = estimate.SweepEstimate("toy", "grid", 2, 3, work=work)
    unknown.add_times([])
    assert unknown.seconds is None


def test_the_pace_of_a_run_is_read_from_its_history(tmp_path: Path) -> None:
    runs, folder = RunStore(tmp_path), tmp_path / "abc"
    runs.acquire("abc", "a run", "toy")
    runs.release("abc", "done")
    state = runs.read("abc")
    assert state is not None
    assert state.ended is not None
    on_gpu = trial_config({**CONFIG, "device": "cuda"})
    claim = {"digest": "abc", "seed": 0, "identity": {}, "config": on_gpu.as_dict()}
    write_json(folder / "config.json", claim)
    # 10 steps in 5 s and 2 s behind each epoch, and a night between the third and the fourth.
    history: list[dict[str, Any]] = []
    for epoch, after in enumerate((0, 7, 14, 21 + 36_000)):
        place = {"epoch": epoch, "epochs": 3, "step": 10 * epoch, "steps": 30, "metrics": {}}
        history.append({**place, "seconds": 5.0 * (epoch > 0), "timestamp": 1000 * after})
    write_json(folder / "history.json", history)
    write_json(folder / "trained.json", {"seconds": 15.0, "ended": state.ended - 12.0})
    for label in ("unmerged", "wise_ft@0.5"):
        write_json(folder / "evaluations" / label / "metrics.json", {})
    timings = estimate.timed_runs(runs)
    times = times_of(on_gpu, timings) or RunTimes(0.0, 0.0, 0.0)
    assert (times.step, times.epoch, times.model) == (0.5, 2.0, pytest.approx(6.0))
    assert times_of(trial_config(CONFIG), timings) is None


def test_runs_side_by_side_shorten_the_wait(
    toy_cli: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.cli.check.this_machine", lambda: Node("big", 8.0))
    toy_cli.run()
    arguments = ("--engine", "ray", "--parallel", "4", "--set", "seeds=3")
    planned = plan(toy_cli, carft, *arguments)
    assert (planned["at_once"], planned["need"]) == (4, "2 CPUs, 0 GPUs")
    assert planned["wall_seconds"] == pytest.approx(planned["seconds"] / 4)
    text = check(toy_cli, carft, *arguments)
    assert "with 4 at once" in text
    assert "4 runs at once on:\n  big: 8 CPUs, 0 GPUs" in text


CLUSTER = "carft_sweep.sweeps.engines.ray_cluster"


class SmallCluster:
    """Stands for a connection to a cluster of two nodes."""

    def __init__(self, address: str) -> None:
        assert address == "head:6379"

    def nodes_by_id(self) -> dict[str, Node]:
        return {"b1g": Node("big", 8.0, 1.0), "sma11": Node("small", 8.0)}

    def close(self) -> None: ...


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The nodes of `head:6379` that are asked whether they can serve, home, imports."""
    seen: list[Any] = []

    def check_nodes(nodes: dict[str, Node], home: Path, *, imports: Any) -> dict[str, Node]:
        seen.append((list(nodes), home, imports))
        if (home / "apart").exists():
            raise RequestError("big: does not share the home")
        return {id_: node.with_gpus([Gpu(1000.0, bf16=True)]) for id_, node in nodes.items()}

    monkeypatch.setattr(f"{CLUSTER}.Cluster", SmallCluster)
    monkeypatch.setattr(f"{CLUSTER}.check_nodes", check_nodes)
    return seen


ON_CLUSTER = ("--address", "head:6379", "--set", "resources.gpus=0.5")


def test_the_nodes_that_could_hold_a_run_are_asked_whether_they_share_the_home(
    toy_cli: ToySweep, carft: Carft, asked: list[Any]
) -> None:
    text = check(toy_cli, carft, *ON_CLUSTER)
    assert f"! {toy_cli.home.path} does not exist yet, so the nodes were not asked whether" in text
    assert "2 runs at once on:" in text
    assert not toy_cli.home.path.exists()
    toy_cli.home.prepare()
    message = carft("check", toy_cli.file(), *ON_CLUSTER, "--set", "resources.gpus=2", code=2).err
    assert "one run needs 1 CPU, 2 GPUs" in message
    assert asked == []
    assert "2 runs at once on:\n  big: 8 CPUs" in check(toy_cli, carft, *ON_CLUSTER)
    assert asked == [(["b1g"], toy_cli.home.path.absolute(), ())]
    (toy_cli.home.path / "apart").touch()
    assert "big: does not share the home" in carft("check", toy_cli.file(), *ON_CLUSTER, code=2).err


@pytest.mark.usefixtures("asked")
def test_gpus_that_stay_idle_for_want_of_cores_are_pointed_out(
    toy_cli: ToySweep, carft: Carft
) -> None:
    text = check(toy_cli, carft, *ON_CLUSTER, "--set", "resources.cpus=8")
    assert "! the GPUs hold 2 runs, and the cores 1: set a smaller resources.cpus" in text
    for changes in ("resources.cpus=4", "resources.gpus=0.5", "resources.gpus=0"):
        assert "the GPUs hold" not in check(toy_cli, carft, *ON_CLUSTER, "--set", changes)


@pytest.mark.usefixtures("asked")
def test_of_gpus_that_differ_it_is_said_what_each_holds_and_how_to_keep_to_one(
    toy_cli: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {}
    for name, kind, size in (("new", "H100", 80_000.0), ("old", "V100", 16_000.0)):
        node = Node(name, 8.0, 1.0, {f"accelerator_type:{kind}": 1.0})
        nodes[name] = node.with_gpus([Gpu(size, bf16=True)])
    monkeypatch.setattr(SmallCluster, "nodes_by_id", lambda _: nodes)
    monkeypatch.setattr(f"{CLUSTER}.check_nodes", lambda nodes, *_, **__: nodes)
    monkeypatch.setattr("carft_sweep.sweeps.engines.factory.memory_on_gpu_mb", lambda _: 7_000.0)
    toy_cli.home.prepare()
    auto = ("--address", "head:6379", "--set", "resources.gpus=auto")
    text = check(toy_cli, carft, *auto)
    assert "One run takes 4 CPUs, 0.5 GPUs; 4 runs at once on:" in text
    assert "  old: 8 CPUs, 1 GPU, 1 accelerator_type:V100; 16.8 GB a GPU\n" in text
    assert "holds 4 on 83.9 GB (new), 2 on 16.8 GB (old); --set " in text
    alone = ("--set", "resources.custom={accelerator_type:H100: 0.001}")
    text = check(toy_cli, carft, *auto, *alone)
    assert "One run takes 2 CPUs, 0.25 GPUs, 0.001 accelerator_type:H100; 4 runs at once" in text
    assert "the GPUs differ" not in text


def test_the_name_of_another_file_is_warned_of(toy_cli: ToySweep, carft: Carft) -> None:
    first = toy_cli.file(**ONE_RUN)
    carft("run", first)
    other, same = first.with_name("low.yaml"), first.with_name("same.yaml")
    other.write_text(first.read_text().replace("id/val/top1", "id/val/nll"))
    same.write_text(first.read_text())
    warning = f"toy was run from {first}; --set name=ANOTHER keeps both sweeps"
    assert "was run from" not in carft("check", same).out
    assert "was run from" not in carft("check", other, "--set", "name=low").out
    assert f"! {warning}" in carft("check", other, "--set", "seeds=[1]").out
    assert warning in carft("run", other, "--set", "seeds=[1]").err


def test_a_batch_larger_than_the_training_images_is_warned_of(
    toy_cli: ToySweep, carft: Carft
) -> None:
    warning = "one step an epoch; --set optim.batch_size="
    assert warning in check(toy_cli, carft, "--set", "optim.batch_size=100000")
    assert warning not in check(toy_cli, carft, "--set", "optim.batch_size=1")
    varied = check(toy_cli, carft, "--set", "parameters.optim.batch_size.values=[99999,100000]")
    assert "one step an epoch\n" in varied, "--set optim.batch_size would be refused"


def test_a_gpu_that_is_not_here_is_planned_for(
    toy_cli: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cost(config: TrialConfig, *_: int) -> RunCost:
        images = config.optim.micro_batch or config.optim.batch_size or 0
        return RunCost(600_000 * images, 0, 10**12, 10**9)

    # Which takes seconds to compute of a real run.
    for module in ("carft_core.training.memory", "sweeps.plan.gpu_cost"):
        monkeypatch.setattr(f"carft_sweep.{module}.run_cost", run_cost)
    trial = {**cast(dict[str, Any], TOY["trial"]), "device": "auto"}
    text = check(toy_cli, carft, "--gpu", "H100", trial=trial, resources={"gpus": 1}, baselines=[])
    assert "this machine with H100: " in text
    assert "Memory of a run on H100" in text
    assert "car_ft, optim.batch_size 64: 38.4 MB" in text
    assert "of one H100, at 35% of its peak" in text
    trial |= {"optim": {"batch_size": 30_000}, "algorithm": {"name": "fine_tune"}}
    rates = {"optim.lr": {"values": [1e-4]}}
    text = check(toy_cli, carft, "--gpu", "T4", trial=trial, parameters=rates, baselines=[])
    assert "fine_tune, optim.batch_size 30000, micro_batch 15000: 9.0 GB" in text
    assert "a T4 computes no bf16" in text
    assert "would take a T4 (device)" in check(toy_cli, carft, "--gpu", "T4")
    message = carft("check", toy_cli.file(), "--gpu", "H10", code=2).err
    assert "unknown GPU 'H10'; did you mean 'H100'?" in message
