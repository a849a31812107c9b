"""The training loop: exact resume, exact equalities, and what it reports."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from carft_sweep.carft_core.algorithms.base import Batch, Loss
from carft_sweep.carft_core.algorithms.car_ft import CarFt
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import NonFinite, RequestError
from carft_sweep.carft_core.evaluation.measure import METRICS
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.clip import checkpoint_gradients, open_model
from carft_sweep.carft_core.models.teacher import Teacher, on_device
from carft_sweep.carft_core.runs.evaluations import finish, is_complete, read_result
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training import loop as train_module
from carft_sweep.carft_core.training.loop import epochs, set_training_mode, train
from carft_sweep.carft_core.training.optim import OPTIMISERS, OptimConfig
from carft_sweep.carft_core.training.resumption import DamagedCheckpoint, restore
from tests.carft_core.other_device import other_device
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config, killed_after, numbers, same, stopped, trained, weights

BEST = {"result": "best_val"}


def ended(config: TrialConfig, folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    trained(config, folder, seed)
    return weights(folder)


def test_a_seed_has_its_weights_and_no_kl_those_of_fine_tuning(
    toy_config: Config, tmp_path: Path
) -> None:
    def car_ft(kl_weight: float, seed: int = 0) -> dict[str, torch.Tensor]:
        torch.manual_seed(321)
        algorithm = {"name": "car_ft", "kl_weight": kl_weight}
        folder = tmp_path / f"{kl_weight}-{seed}"
        return ended(toy_config({"algorithm": algorithm, "optim.epochs": 1}), folder, seed)

    torch.manual_seed(123)
    plain = ended(toy_config({"algorithm": "fine_tune", "optim.epochs": 1}), tmp_path / "ft")
    assert same(plain, car_ft(0.0))
    assert not same(plain, car_ft(1.0))
    assert not same(plain, car_ft(0.0, seed=1))


def test_a_run_closed_between_epochs_ends_the_same(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"optim.epochs": 3})
    expected = ended(config, tmp_path / "whole")
    for after in (0, 2):
        folder = tmp_path / str(after)
        stopped(config, folder, after=after)
        reports = epochs(config, 0, workdir=folder)
        assert [report.epoch for report in reports] == list(range(after + 1, 4))
        assert same(weights(folder), expected)
        histories = RunFolder(tmp_path / "whole").history(), RunFolder(folder).history()
        losses = [[item["metrics"].get("train/loss") for item in h] for h in histories]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("resumed_from", [0, 3])
def test_what_was_trained_behind_the_checkpoint_is_trained_and_reported_again(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed_from: int
) -> None:
    """Killed after epoch 3 of 4: without a checkpoint, and with one of epoch 2."""
    config, folder = toy_config({"optim.epochs": 4}), RunFolder(tmp_path / "killed")
    expected = list(epochs(config, 0, workdir=tmp_path / "whole"))
    save = RunFolder.save_checkpoint

    def save_one(self: RunFolder, progress: Mapping[str, Any]) -> None:
        if len(progress["history"]) == resumed_from:
            save(self, progress)

    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(RunFolder, "save_checkpoint", save_one)
    before = killed_after(3, config, folder.path)
    monkeypatch.undo()
    assert [report["epoch"] for report in folder.history()] == [0, 1, 2, 3]
    assert folder.checkpoint.exists() == (resumed_from > 0)
    again = []
    for report in epochs(config, 0, workdir=folder.path):
        again.append(report)
        assert len(folder.history()) == max(4, report.epoch + 1), "what was reported stays"
    assert [report.epoch for report in again] == list(range(resumed_from, 5))
    # An epoch that is trained again has its first time: whoever tracks it twice tracks it once.
    assert again[: 4 - resumed_from] == before[resumed_from:]
    assert list(map(numbers, again)) == list(map(numbers, expected[resumed_from:]))
    assert [report["epoch"] for report in folder.history()] == [0, 1, 2, 3, 4]
    assert same(weights(folder.path), weights(tmp_path / "whole"))


def test_a_checkpoint_that_does_not_fit_costs_a_start_from_the_beginning(
    toy_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = toy_config({"optim.epochs": 1}), RunFolder(tmp_path)

    def first() -> int:
        with contextlib.closing(epochs(config, 0, workdir=tmp_path)) as reports:
            return next(reports).epoch

    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda saved: saved.pop("best"),
        lambda saved: saved["model"].popitem(),
        lambda saved: saved["model"].update(dict.fromkeys(saved["model"], torch.zeros(3))),
        lambda saved: saved["optimiser"].update(state=3),
        lambda saved: saved["optimiser"].update(param_groups=[]),
        lambda saved: saved["optimiser"]["state"][0].update(exp_avg=torch.zeros(2, 3)),
    ]
    assert first() == 0
    for change in changes:
        progress = folder.load_checkpoint()
        assert progress is not None
        progress["optimiser"]["state"].setdefault(0, {})
        change(progress)
        folder.save_checkpoint(progress)
        caplog.clear()
        assert first() == 0
        assert f"{folder.checkpoint} is damaged" in caplog.text


@pytest.mark.parametrize("name", [*OPTIMISERS, "Adafactor"])
def test_a_state_of_another_shape_is_refused_where_the_optimiser_has_none(name: str) -> None:
    """torch's fused kernels would read beyond its end; those of Adafactor are rows and columns."""
    model = nn.Linear(4, 3, bias=False)
    groups: list[dict[str, Any]] = [{"params": [model.weight], "weight_decay": 0.1}]
    make = OPTIMISERS[name].make if name in OPTIMISERS else lambda *_: torch.optim.Adafactor(groups)
    optimiser = make(groups, OptimConfig())

    def closure() -> torch.Tensor:
        model(torch.ones(4)).sum().backward()
        return torch.zeros(())

    optimiser.step(closure)  # type: ignore[arg-type]  # a tensor is a float to it
    progress: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    progress |= {"step": 1, "best": 0.0, "history": []}
    restore(progress, model, optimiser)
    if name in OPTIMISERS:
        (state,) = progress["optimiser"]["state"].values()
        state |= {key: torch.zeros(1) for key in state if key != "step"}
        with pytest.raises(DamagedCheckpoint, match="does not fit its parameter"):
            restore(progress, model, optimiser)


def test_the_state_of_an_optimiser_is_loaded_where_the_run_trains() -> None:
    model = nn.Linear(4, 3, bias=False)
    optimiser = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(4)).sum().backward()
    optimiser.step()
    progress: dict[str, Any] = {"model": {}, "optimiser": optimiser.state_dict()}
    with other_device() as device:
        moved = on_device(model, device)
        optimiser = torch.optim.SGD(moved.parameters(), momentum=0.9)
        restore({**progress, "step": 1, "best": 0.0, "history": []}, nn.Module(), optimiser)
        (state,) = optimiser.state.values()
        assert state["momentum_buffer"].device == device


@pytest.mark.parametrize("numbers", [1_000, 1_000_000])
def test_a_checkpoint_that_cannot_be_written_says_why(tmp_path: Path, numbers: int) -> None:
    """PyTorch's own message is: unexpected pos 768 vs 662."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000 if numbers < 10_000 else 400_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: '/"):
            RunFolder(tmp_path).save_checkpoint({"model": {"weights": torch.zeros(numbers)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoints_are_saved_by_the_clock_and_when_the_run_is_closed(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the history: else an end between the two would leave an epoch nobody is told of."""
    config = toy_config({"optim.epochs": 3})

    def last_epoch(folder: RunFolder, progress: Mapping[str, Any]) -> int:
        assert len(folder.history()) == len(progress["history"])
        return progress["history"][-1]["epoch"]

    saved = watched(monkeypatch, RunFolder, "save_checkpoint", last_epoch)
    ended(config, tmp_path / "short")
    assert saved == [], "it takes less than ten seconds"
    stopped(config, tmp_path / "closed", after=1)
    assert saved == [1]
    saved.clear()
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY", 0.0)
    ended(config, tmp_path / "long")
    assert saved == [0, 1, 2], "the weights of the last epoch are saved by themselves"
    for folder in ("short", "long"):
        assert not RunFolder(tmp_path / folder).checkpoint.exists()


@pytest.mark.parametrize("case", [(3.0, 0.05, 4, 6, 8), (3.0, 0.1, 4, 8), (80.0, 1000.0, 1, 5)])
def test_a_checkpoint_is_kept_as_often_as_it_takes_a_hundredth_of_the_time(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    epoch, takes, *saved_at = case
    now, saved = [0.0], list[int]()

    def save(_: RunFolder, progress: Mapping[str, Any]) -> None:
        saved.append(progress["history"][-1]["epoch"])
        now[0] += takes

    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr(train_module, "time", clock)
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    for _ in epochs(toy_config({"optim.epochs": saved_at[-1] + 1}), 0, workdir=tmp_path):
        now[0] += epoch
    assert saved == saved_at


def test_a_run_closed_behind_its_last_epoch_is_trained(toy_config: Config, tmp_path: Path) -> None:
    config, folder = toy_config(), RunFolder(tmp_path)
    with contextlib.closing(epochs(config, 0, workdir=tmp_path)) as reports:
        for _ in range(3):
            next(reports)
    assert not folder.is_trained(config)
    assert list(epochs(config, 0, workdir=tmp_path)) == []
    assert [report["epoch"] for report in folder.history()] == [0, 1, 2]
    assert folder.is_trained(config)
    assert not folder.checkpoint.exists()


def test_micro_batches_add_up_to_the_batch(toy_config: Config, tmp_path: Path) -> None:
    whole = ended(toy_config(), tmp_path / "whole")
    parts = ended(toy_config({"optim.micro_batch": 3}), tmp_path / "parts")
    assert all(torch.allclose(whole[k], parts[k], atol=2e-3) for k in whole)


@pytest.mark.parametrize("algorithm", ["car_ft", "flyp", {"name": "ema", "of": "fine_tune"}])
def test_activations_that_are_computed_again_give_the_same_weights(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: object
) -> None:
    """On one CPU the very same; on a GPU up to rounding."""
    calls = watched(monkeypatch, open_clip.transformer, "checkpoint", lambda *args, **_: args[0])
    plain = ended(toy_config({"algorithm": algorithm, "optim.epochs": 1}), tmp_path / "plain")
    assert not calls
    changes = {"algorithm": algorithm, "optim.epochs": 1, "optim.grad_checkpointing": True}
    saving = ended(toy_config(changes), tmp_path / "saving")
    assert calls
    assert same(plain, saving)
    digests = [RunFolder(tmp_path / name).claimed()["digest"] for name in ("plain", "saving")]
    assert digests[0] == digests[1]


def test_a_tower_that_cannot_compute_its_activations_again_is_refused() -> None:
    """open_clip's ResNets have the method, which does nothing; a ConvNeXt of timm's can."""
    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=32, width=8)
    head = nn.Linear(8, 3, bias=False)
    with pytest.raises(RequestError, match="grad_checkpointing: the image tower ModifiedResNet"):
        checkpoint_gradients(ImageClassifier(resnet, head), resnet)
    checkpoint_gradients(head, resnet)  # an adapter, beside which the tower is frozen
    convnext = open_model("builtin").model.visual
    assert isinstance(convnext, nn.Module)
    checkpoint_gradients(ImageClassifier(convnext, head), convnext)


def test_no_more_than_a_micro_batch_is_held_at_once(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch, CarFt, "loss", lambda _, __, batch, ___: len(batch.labels))
    one_step = {"optim": {"lr": 1e-3, "steps": 1, "batch_size": 8}}
    in_parts = toy_config({**one_step, "optim.micro_batch": 3})
    _, parts = epochs(in_parts, 0, workdir=tmp_path / "parts")
    assert seen == [3, 3, 2]
    _, whole = epochs(toy_config(one_step), 0, workdir=tmp_path / "whole")
    for name in ("train/loss", "train/cross_entropy", "train/teacher_context_entropy"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_one_without_terms_is_told(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config({"optim.clip": None, "optim.warmup": 0.0})
    diverging = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e30})})
    with pytest.raises(NonFinite, match=r"train/.* in epoch \d, step \d+, at optim\.lr 1e\+30"):
        list(epochs(diverging, 0, workdir=tmp_path / "diverging"))

    def broken(_: CarFt, model: nn.Module, batch: Batch, *__: Teacher) -> Loss:
        loss = batch.cross_entropy(model(batch.images)) * float("nan")
        return loss, {"cross_entropy": loss}

    monkeypatch.setattr(CarFt, "loss", broken)
    with pytest.raises(NonFinite, match=r"train/loss is nan in epoch 1, step 1, at optim\.lr"):
        list(epochs(config, 0, workdir=tmp_path))
    assert not RunFolder(tmp_path).checkpoint.exists()
    assert [report["epoch"] for report in RunFolder(tmp_path).history()] == [0]
    monkeypatch.setattr(CarFt, "loss", lambda _, model, batch, __: model(batch.images).sum())
    words = r"loss of car_ft must return \(loss, dict of terms\), two things, and not a Tensor"
    refused(words, list, epochs(config, 0, workdir=tmp_path))


def test_epoch_zero_tells_of_the_model_before_training(toy_config: Config, tmp_path: Path) -> None:
    reports = list(epochs(toy_config(), 0, workdir=tmp_path))
    assert [r.epoch for r in reports] == [0, 1, 2]
    assert reports[0].metrics.keys() == {f"id/val/{name}" for name in METRICS}
    assert reports[-1].step == reports[-1].steps
    first = reports[1].metrics
    assert first["train/first/context_kl"] == 0.0
    assert first["train/first/loss"] == first["train/first/cross_entropy"]
    assert first["train/teacher_context_entropy"] >= 0
    terms = {"loss", "cross_entropy", "context_kl", "teacher_context_entropy"}
    assert {name.rpartition("/")[2] for name in first if name.startswith("train/first/")} == terms
    assert not any(name.startswith("train/first/") for name in reports[2].metrics)
    for report in reports[1:]:
        assert report.metrics["train/context_kl"] > 0
        assert report.metrics["system/images_per_s"] > 0
        assert not any(name.startswith(("id/test", "ood/")) for name in report.metrics)
    every = toy_config({"eval": {"every_epoch": True}})
    report = next(epochs(every, 0, workdir=tmp_path / "every"))
    assert {"id/test/top1", "ood/dark/top1", "ood/pale/top1"} <= {*report.metrics}


def test_epochs_may_be_so_many_steps(toy_config: Config, tmp_path: Path) -> None:
    optim = {"lr": 1e-3, "steps": 5, "steps_per_epoch": 2, "batch_size": 8}
    config = toy_config({"optim": optim})
    assert [report.step for report in epochs(config, 0, workdir=tmp_path)] == [0, 2, 4, 5]
    whole = toy_config({"optim": {**optim, "steps_per_epoch": 5}})
    assert same(weights(tmp_path), ended(whole, tmp_path / "one"))


def test_the_result_is_the_last_or_the_best_epoch(toy_config: Config, tmp_path: Path) -> None:
    result = trained(toy_config({"optim.epochs": 3, "keep": BEST}), tmp_path)
    assert {file.stem for file in (tmp_path / "weights").iterdir()} == {"last", "best_val"}
    history = RunFolder(tmp_path).history()[1:]
    assert result.metrics["id/val/top1"] == max(h["metrics"]["id/val/top1"] for h in history)
    last = finish(tmp_path, toy_config({"optim.epochs": 3}), 0)
    assert last.metrics["id/val/top1"] == history[-1]["metrics"]["id/val/top1"]


def test_a_run_that_trains_again_is_not_trained_before_its_end(
    toy_config: Config, tmp_path: Path
) -> None:
    lean = {"keep": {**BEST, "weights": False}}
    cases = [({}, {"keep": BEST}), (lean, {**lean, "merges": ["wise_ft"]})]
    for number, (before, now) in enumerate(cases):
        folder = tmp_path / str(number)
        trained(toy_config(before), folder)
        stopped(toy_config(now), folder, after=1)
        assert [report.epoch for report in epochs(toy_config(now), 0, workdir=folder)] == [2]
    stopped(toy_config(), tmp_path / "last", after=1)
    again = epochs(toy_config({"keep": BEST}), 0, workdir=tmp_path / "last")
    assert [report.epoch for report in again] == [0, 1, 2], "the weights of epoch 1 are lost"


def test_adding_an_alpha_evaluates_and_does_not_train(toy_config: Config, tmp_path: Path) -> None:
    merges: list[dict[str, Any]] = [{"name": "wise_ft", "alphas": [0.5]}]
    train(toy_config({"merges": merges}), 0, workdir=tmp_path)
    more = toy_config({"merges": [{"name": "wise_ft", "alphas": [0.25, 0.5]}]})
    assert not is_complete(tmp_path, more)
    before = RunFolder(tmp_path).metrics("wise_ft@0.5").stat().st_mtime_ns
    assert list(epochs(more, 0, workdir=tmp_path)) == []
    assert [*trained(more, tmp_path).merges] == ["wise_ft@0.25", "wise_ft@0.5"]
    assert RunFolder(tmp_path).metrics("wise_ft@0.5").stat().st_mtime_ns == before
    assert is_complete(tmp_path, more)


def test_what_is_kept_of_a_done_run(toy_config: Config, tmp_path: Path) -> None:
    trained(toy_config(), tmp_path / "all")
    refused("holds another run", train, toy_config(), 1, workdir=tmp_path / "all")
    assert not RunFolder(tmp_path / "all").checkpoint.exists()
    names = [file.name for file in (tmp_path / "all" / "weights").iterdir()]
    assert names == ["last.safetensors"], "B14: each improvement was written too"
    lean, folder = toy_config({"keep": {"weights": False, "predictions": False}}), tmp_path / "lean"
    train(lean, 0, workdir=folder)
    remaining = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    own = {f"{name}.json" for name in ("config", "history", "trained")}
    assert remaining == own | {"evaluations/unmerged/metrics.json"}
    assert is_complete(folder, lean)
    assert list(epochs(lean, 0, workdir=folder)) == []
    assert train(lean, 0, workdir=folder) == read_result(folder, lean)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    set_training_mode(model, "frozen")
    assert [module.training for module in model] == [True, False, True]
    set_training_mode(model, "train")
    assert all(module.training for module in model)


def test_one_set_of_workers_serves_a_run(
    toy_config: Config, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = [{"name": "wise_ft", "alphas": [0.5]}]
    config = toy_config({"eval": {"every_epoch": True}, "merges": merges, "optim.epochs": 1})
    alone = trained(config, tmp_path / "alone")
    shutil.rmtree(cache)  # so that every image is loaded again
    processes = watched(monkeypatch, BaseProcess, "start", lambda process: process)
    by_workers = trained(config.model_copy(update={"workers": 2}), tmp_path / "both")
    assert len(processes) == 2
    assert not any(process.is_alive() for process in processes)
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "both"))
    assert (alone.metrics, alone.merges) == (by_workers.metrics, by_workers.merges)
