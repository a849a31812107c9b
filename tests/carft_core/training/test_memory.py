"""What is said of a run's memory before it runs, beside what PyTorch's allocator counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from carft_sweep.carft_core.algorithms import Batch, loss_and_terms
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.evaluation.measure import METRICS, OF_CLASSES
from carft_sweep.carft_core.evaluation.predictions import TOP, greatest
from carft_sweep.carft_core.models.clip import open_model, open_shapes
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.models.teacher import on_device, open_teacher
from carft_sweep.carft_core.training import logistic_regression, memory
from carft_sweep.carft_core.training.loop import set_training_mode
from carft_sweep.carft_core.training.memory import RunCost, fit_batches, run_cost
from carft_sweep.carft_core.training.optim import freeze_all_but
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import Config

PLAIN: dict[str, Any] = {"algorithm": "fine_tune", "precision": "fp32"}


@pytest.fixture(scope="module", autouse=True)
def computed_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test computes another finds."""
    folder = tmp_path_factory.mktemp("costs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "user_cache", lambda: folder)
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "user_cache", lambda: tmp_path)
    return tmp_path


def cost(config: TrialConfig, ranks: int = 1) -> RunCost:
    costs = run_cost(config, ranks)
    assert costs is not None
    return costs


@pytest.fixture(scope="module")
def fine_tuned(toy_config: Config) -> Callable[..., RunCost]:
    """The cost of fine-tuning with `changes`."""

    def build(ranks: int = 1, **optim: Any) -> RunCost:
        changes = {f"optim.{name}": value for name, value in optim.items()}
        return cost(toy_config({**PLAIN, **changes}), ranks)

    return build


def measured_peak(config: TrialConfig) -> int:
    """Bytes that a step's tensors take at most, as the allocator counts them."""
    algorithm, optim = config.algorithm, config.optim
    clip, templates = open_model(config.model.name), template_set(config.prompts.classes)
    side, device = clip.transform.size, torch.device("cpu")
    names = open_data(config.data).class_names

    def step(count: int) -> None:
        prompts: dict[str, Any] = {"classes": templates, "contexts": templates}
        of: dict[str, Any] = {"transform": clip.transform, "device": device, **prompts}
        teacher = open_teacher(clip, names, {}, {}, **of)
        model = on_device(algorithm.build(teacher), device)
        groups = algorithm.groups(model, optim)
        freeze_all_but(model, groups)
        optimiser = algorithm.optimiser(groups, optim)
        set_training_mode(model, "frozen")

        def closure() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            images = torch.randn(count, 3, side, side)
            batch = Batch(
                images=images.contiguous(memory_format=torch.channels_last),
                labels=torch.zeros(count, dtype=torch.int64),
                index=torch.arange(count),
                teacher_features=teacher.image_features,
            )
            loss, _ = loss_and_terms(algorithm, model, batch, teacher)
            loss.backward()
            return loss.detach()

        for _ in range(2):
            optimiser.step(closure)  # type: ignore[arg-type]

    step(2)  # what it keeps for later ones, such as the features of prompts, is there now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(optim.batch_size)
    events = profiled.profiler.kineto_results.events()
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


NEWER = ("flyp", "carot", "tracer", "lora", "swad")


@pytest.mark.parametrize(
    "algorithm",
    ["fine_tune", "car_ft", *(pytest.param(name, marks=pytest.mark.slow) for name in NEWER)],
)
def test_the_computed_peak_is_what_the_allocator_counts(algorithm: str) -> None:
    fields = {"algorithm": algorithm, "device": "cpu", "precision": "fp32"}
    sizes = {"data": {"family": "icon_shift"}, "optim": {"batch_size": 128}}
    config = trial_config({**fields, **sizes}).for_seed(0)
    # What a kernel takes for itself while it computes is in one and not in the other.
    assert cost(config).training == pytest.approx(measured_peak(config), rel=0.12)


def test_a_smaller_part_takes_less_and_computes_as_much(fine_tuned: Callable[..., RunCost]) -> None:
    whole, parted = fine_tuned(batch_size=64), fine_tuned(batch_size=64, micro_batch=16)
    assert parted.training < whole.training
    assert parted.step == pytest.approx(whole.step, rel=0.01)
    assert (parted.evaluation, parted.image) == (whole.evaluation, whole.image)


@pytest.mark.usefixtures("empty_cache")
def test_a_search_over_rates_and_weights_computes_one_cost(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[RunCost] = []

    def compute(*_: Any) -> RunCost:
        computed.append(RunCost(len(computed), 0, 0, 0))
        return computed[-1]

    monkeypatch.setattr(memory, "_compute", compute)

    def cost(kl_weight: float = 1.0, **optim: float) -> RunCost | None:
        changes = {f"optim.{name}": value for name, value in optim.items()}
        return run_cost(toy_config({"algorithm.kl_weight": kl_weight, **changes}))

    first = cost()
    for equal in (cost(3.0), cost(lr=1e-5), cost(epochs=7), cost(micro_batch=8)):
        assert equal == first
    assert len(computed) == 1
    unequal = [cost(0.0), cost(batch_size=16), cost(micro_batch=4), cost(grad_checkpointing=True)]
    assert len({first, *unequal}) == len(computed) == 5


def test_the_largest_fitting_part_is_found(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_byte_an_image(config: TrialConfig, _: int) -> RunCost:
        return RunCost(config.optim.micro_batch or config.optim.batch_size, 0, 0, 0)

    monkeypatch.setattr(memory, "run_cost", a_byte_an_image)
    config = toy_config({"optim.batch_size": 1000, "eval": {"batch_size": 8}})
    assert fit_batches(config, 1000) == config
    for size in (500, 125):
        assert fit_batches(config, size).optim.micro_batch == size
    assert (fit_batches(config, 500, ranks=2), fit_batches(config, 0)) == (config, config)


def test_a_batch_to_evaluate_fits_too_unless_the_file_says_it(toy_config: Config) -> None:
    def asked(**evaluation: int) -> TrialConfig:
        return toy_config({**PLAIN, "algorithm": "zero_shot", "eval": evaluation})

    at_64 = cost(asked(batch_size=64))
    assert cost(asked()) == cost(asked(batch_size=256)) != at_64
    assert fit_batches(asked(), at_64.evaluation).eval.batch_size == 64
    assert fit_batches(asked(batch_size=100), at_64.evaluation).eval.batch_size == 100


def test_the_predictions_of_a_large_split_count(
    fine_tuned: Callable[..., RunCost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No metric of them takes more than what is computed: 20 bytes a logit."""
    items, classes = 2000, 500
    logits, labels = torch.randn(items, classes), torch.arange(items) % classes
    metrics: list[Callable[..., object]] = [*METRICS.values(), *OF_CLASSES.values()]
    taken = []
    for compute in [*metrics, lambda *of: greatest(of[0], TOP)]:
        with memory.PeakMemory() as counted:
            counted.add(logits)
            compute(logits, labels)
        taken.append(counted.peak)
    assert max(taken) == pytest.approx(taken[-1], rel=0.02)
    usual = fine_tuned()
    monkeypatch.setattr(memory, "_most_items", lambda _: 10**6)
    large = fine_tuned()
    # Two models' features, and logits, of three classes, each of which is among the greatest too.
    assert large.evaluation == pytest.approx(10**6 * (2 * 32 * 4 + 3 * (20 + 12)), rel=0.1)
    assert large.training == usual.training


def test_a_balanced_step_has_a_batch_of_each_domain(pacs_config: Config) -> None:
    def of(algorithm: str, batch_size: int, *, balanced: bool) -> RunCost:
        changes = {"optim.batch_size": batch_size, "data.balanced": balanced}
        return cost(pacs_config({**PLAIN, "algorithm": algorithm, **changes}))

    plain = of("fine_tune", 96, balanced=False)
    assert of("fine_tune", 32, balanced=True) == plain
    assert of("coral", 96, balanced=False).step > plain.step  # it looks at the domains' numbers


def test_what_looks_at_numbers_is_unknown_and_remembered_as_that(
    toy_config: Config, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(PLAIN)
    look = staticmethod(lambda *arguments: float(arguments[1].images.sum()))
    monkeypatch.setattr(type(config.algorithm), "loss", look)
    assert run_cost(config) is run_cost(config) is None
    assert len([*empty_cache.glob("run_cost/*.json")]) == 1


def test_what_the_cache_does_not_give_is_computed_again(
    toy_config: Config, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config({**PLAIN, "algorithm": "zero_shot"})
    costs = cost(config)
    (file,) = empty_cache.glob("run_cost/*.json")
    file.write_text('{"training": 1}')
    assert run_cost(config) == costs

    monkeypatch.setattr(memory, "read_json", failing(PermissionError(13, "Permission denied")))
    assert run_cost(config) == costs


def test_a_probe_takes_what_its_solution_does(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, classes, width = 8_000, 100, 64
    monkeypatch.setattr(logistic_regression, "LOGITS_AT_ONCE", 2**17)
    labels, start = torch.arange(count) % classes, torch.zeros(classes, width)
    features = F.normalize(torch.randn(classes, width)[labels] + torch.randn(count, width))
    with memory.PeakMemory() as counted:
        counted.add(features)
        counted.add(labels)
        logistic_regression.logistic_regression(features, labels, start, c=10.0, max_iter=14)
    empty, none = torch.empty(classes, width), lambda: None
    teacher: Any = SimpleNamespace(splits={"train": range(count)}, w_cls=empty, new_classifier=none)
    monkeypatch.setattr(memory, "_encode", lambda *_: 0)
    with memory.PeakMemory() as computed:
        objective = memory._solve(teacher, toy_config())
    assert computed.peak == pytest.approx(counted.peak, rel=0.01)
    assert objective == 4 * count * classes * width  # forwards, and back to the weight


@pytest.mark.parametrize("algorithm", ["linear_probe", "lp_ft", "ema"])
def test_a_probe_counts_wherever_one_is_solved(
    algorithm: str, toy_config: Config, fine_tuned: Callable[..., RunCost]
) -> None:
    fields = {"name": algorithm} | ({"of": "lp_ft"} if algorithm == "ema" else {})
    probed, plain = cost(toy_config({**PLAIN, "algorithm": fields})), fine_tuned()
    assert plain.solving == plain.objective == 0 < probed.objective
    assert probed.solving > 2**25 * 8 / 1000 > 0
    assert (probed.step > 0) == (probed.training > 0) == (algorithm != "linear_probe")


def test_each_of_several_gpus_has_its_images_and_a_copy_of_all_gradients(
    toy_config: Config, fine_tuned: Callable[..., RunCost]
) -> None:
    half, two = fine_tuned(batch_size=64), fine_tuned(2, batch_size=128)
    assert (two.step, two.training) == (half.step, half.training)
    single, shared = fine_tuned(batch_size=1), fine_tuned(2, batch_size=2)
    clip = open_shapes(str(toy_config().model.name), None)
    trained = sum(p.numel() for p in clip.image_tower.parameters()) * 4
    # Those in channels_last are copied once more, on the way into one row.
    assert trained < shared.training - single.training < 1.3 * trained
