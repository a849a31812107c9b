"""`auto` is resolved once, by the driver, against what a run gets, before anything is filed."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.training import memory
from carft_sweep.carft_core.training.memory import RunCost
from carft_sweep.sweeps.engines import resources
from carft_sweep.sweeps.engines.factory import make_engine
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.engines.resources import Gpu, Hardware, Node, RunRequirements
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.spec.spec import load_spec
from tests.sweeps import toy_core
from tests.sweeps.conftest import ToySweep

HEAD = Node("head", 0)
H100 = Node("h100", 16, 1).with_gpus([Gpu(80_000.0, bf16=True)])
T4 = Node("t4", 16, 1).with_gpus([Gpu(16_000.0, bf16=False)])
UNASKED = Node("unasked", 16, 1)
ONE_GPU = Hardware(8, 1, bf16=True)
CPU = Hardware(8)
AUTO = {"algorithm": {"name": "car_ft"}}
"""A trial that leaves open what it computes on."""


@pytest.fixture(autouse=True)
def cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes 2 MiB for each image at once, which takes seconds to compute of a real one."""

    def run_cost(config: TrialConfig, *_: int) -> RunCost:
        images = config.optim.micro_batch or config.optim.batch_size or 0
        return RunCost(images * 2**21, 0, 0, 0)

    monkeypatch.setattr(memory, "run_cost", run_cost)


def config(**fields: Any) -> TrialConfig:
    return trial_config({"algorithm": "fine_tune", **fields})


def resolved(hardware: Hardware, **fields: Any) -> tuple[str, str]:
    chosen = hardware.resolve(config(**fields))
    return chosen.device, chosen.precision


LARGE = Node("large", 32, 1, bf16=True)


@pytest.mark.parametrize(
    ("cpus", "gpus", "supply", "expected", "reason"),
    [
        (4, 1, [HEAD, H100], ("cuda", "bf16"), None),
        (4, 0, [HEAD, H100], ("cpu", "fp32"), None),
        (4, 1, [H100, T4], ("cuda", "fp32"), "a GPU of t4 computes no bf16"),
        (4, 1, [H100, UNASKED], ("cuda", "fp32"), "it is unknown whether the GPUs of unasked com"),
        (32, 1, [H100, LARGE], ("cuda", "bf16"), None),
    ],
)
def test_on_a_cluster_what_a_run_asks_for_decides_and_bf16_is_taken_only_where_it_is_known(
    cpus: int, gpus: int, supply: list[Node], expected: tuple[str, str], reason: str | None
) -> None:
    hardware = resources.hardware_of(RunRequirements(cpus, gpus), supply)
    assert resolved(hardware) == expected
    notes = list(hardware.notes(config()))
    assert [str(reason) in note for note in notes] == ([] if reason is None else [True])
    for fixed in ({"precision": "fp32"}, {"device": "cpu"}):
        assert list(hardware.notes(config(**fixed))) == []


def test_what_a_file_says_is_kept_and_a_device_that_a_run_does_not_get_is_refused() -> None:
    assert resolved(ONE_GPU, device="cpu") == ("cpu", "fp32")
    assert resolved(ONE_GPU, precision="fp32") == ("cuda", "fp32")
    assert resolved(CPU, precision="bf16") == ("cpu", "bf16")
    assert resolved(Hardware(8, 4, bf16=True), device="cuda:3") == ("cuda:3", "bf16")
    assert resolved(Hardware(8, mps=True)) == ("mps", "fp32")
    for hardware, device, more in (
        (CPU, "cuda", r": a run gets 0 GPUs \(resources\.gpus\)"),
        (ONE_GPU, "cuda:1", ": a run gets 1 GPU"),
        (ONE_GPU, "mps", ""),
    ):
        with pytest.raises(RequestError, match=f"device: {device} is not there{more}"):
            hardware.resolve(config(device=device))


def test_where_a_gpu_trains_the_other_cores_of_the_share_load() -> None:
    for hardware, device, workers in (
        (Hardware(1, 1), "auto", 1),
        (Hardware(8, 1), "auto", 7),
        (Hardware(64, 1), "cuda", 16),
        (Hardware(64, 1), "cpu", 0),
        (Hardware(64), "auto", 0),
        (Hardware(8, mps=True), "auto", 0),
    ):
        assert hardware.resolve(config(device=device)).workers == workers
        assert hardware.resolve(config(device=device, workers=3)).workers == 3


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as one with a GPU that computes bf16."""
    answers = {"is_available": True, "device_count": 1, "get_device_capability": (9, 0)}
    answers["get_device_properties"] = SimpleNamespace(total_memory=80 * 2**30)
    cuda = {name: lambda *_, answer=answer: answer for name, answer in answers.items()}
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**cuda))


@pytest.mark.usefixtures("gpu_machine")
def test_a_gpu_that_runs_may_not_have_is_not_what_they_are_filed_under(tmp_path: Path) -> None:
    assert resolved(resources.hardware_here(None, None)) == ("cuda", "bf16")
    assert resolved(resources.hardware_here(0, None)) == ("cpu", "fp32")
    file = tmp_path / "sweep.yaml"
    sweep = {"name": "s", "trial": AUTO, "parameters": {"algorithm.kl_weight": {"values": [1]}}}
    file.write_text(json.dumps({**sweep, "engine": "local", "resources": {"gpus": 0}}))
    for in_process in (False, True):
        with closing(make_engine(load_spec(file), in_process=in_process)) as engine:
            assert resolved(engine.hardware) == ("cpu", "fp32")


@pytest.mark.parametrize("in_process", [False, True])
def test_gpus_that_torch_cannot_use_are_not_passed_over_without_a_word(
    in_process: bool, toy: ToySweep
) -> None:
    """A build of torch without CUDA, or too new for the driver: the night would go to the CPU."""
    toy.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toy.monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    toy.monkeypatch.setattr(resources, "visible_gpus", lambda _=None: [Gpu(name="GPU-1")] * 2)
    with closing(make_engine(load_spec(toy.file(trial=AUTO)), in_process=in_process)) as engine:
        with pytest.raises(RequestError, match=r"lists 2 GPUs, but torch .* say device: cpu"):
            toy.run(engine, trial=AUTO)
        assert not toy.trained()
        assert resolved(engine.hardware, device="cpu") == ("cpu", "fp32")
    spec = load_spec(toy.file(resources={"gpus": 0}))
    with closing(make_engine(spec, in_process=in_process)) as engine:
        assert resolved(engine.hardware) == ("cpu", "fp32")


def test_a_folder_named_by_another_digest_is_not_claimed(tmp_path: Path) -> None:
    plain = config(device="cpu", precision="fp32")
    identity = identify(plain, 0)
    other = tmp_path / ("0" * 64)
    with pytest.raises(RequestError, match=f"the folder of run {'0' * 12}, but here the run would"):
        RunFolder(other).claim(plain, 0, identity)
    assert not other.exists()
    for name in (identity.digest, "mine", "0" * 63):
        RunFolder(tmp_path / name).claim(plain, 0, identity)
        assert RunFolder(tmp_path / name).claimed()["digest"] == identity.digest


class Elsewhere(InProcessEngine):
    """Runs that get other hardware than this machine has."""

    def __init__(self, hardware: Hardware) -> None:
        super().__init__(toy_core.ENTRY)
        self._hardware = hardware

    @property
    def hardware(self) -> Hardware:
        return self._hardware


def test_nothing_of_other_hardware_is_reused(toy: ToySweep) -> None:
    changes: dict[str, Any] = {"trial": AUTO, "seeds": [0], "baselines": []}
    toy.run(Elsewhere(ONE_GPU), **changes)
    trained = toy.trained()
    files = toy.home.runs.glob("*/config.json")
    configs = [json.loads(file.read_text())["config"] for file in files]
    assert {(fields["device"], fields["precision"]) for fields in configs} == {("cuda", "bf16")}
    toy.run(Elsewhere(CPU), **changes)
    assert sum(toy.trained().values()) == 2 * sum(trained.values())
    assert toy.ledger().generation == 2
    assert any("the device, the precision changed: the" in line for line in toy.lines)
    states = [RunStore(toy.home.runs).read(digest) for digest in toy.trained()]
    assert all(state is not None and state.state == "done" for state in states)


def test_a_worker_without_what_the_job_says_fails_and_is_not_tried_again(toy: ToySweep) -> None:
    """On the real core: this machine has no GPU."""
    engine = Elsewhere(ONE_GPU)
    engine._entry = InProcessEngine()._entry
    toy.monkeypatch.setattr("carft_sweep.sweeps.plan.planner.identify", identify)
    toy.run(engine, trial=AUTO, seeds=[0], baselines=[], breaker=0)
    reasons = [trial.reason or {} for trial in toy.ledger().trials()]
    message = "device: cuda is not there; torch sees 0 CUDA devices"
    assert [(reason["kind"], reason["message"]) for reason in reasons] == [("data", message)] * 2


def test_a_batch_that_does_not_fit_the_gpu_is_parted_unless_the_file_says_how() -> None:
    large = Hardware(8, 1, bf16=True, gpu_memory=80_000.0)
    small = replace(large, gpu_memory=3_000.0)

    def part(hardware: Hardware, algorithm: str = "fine_tune", **optim: int) -> int | None:
        asked = {"batch_size": 1024, **optim}
        return hardware.resolve(config(algorithm=algorithm, optim=asked)).optim.micro_batch

    assert (part(large), part(small), part(small, micro_batch=900)) == (None, 512, 900)
    assert part(small, "flyp") is None  # it would be another run
