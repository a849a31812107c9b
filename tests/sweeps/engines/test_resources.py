"""Need against supply: what is refused, how many runs fit at once, and what is left open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_core.config import trial_config
from sweeps.engines.resources import (
    Gpu,
    Need,
    Node,
    need_of,
    peak_memory_mb,
    refusal,
    slots,
    this_machine,
    too_little_memory,
    visible_gpus,
)
from sweeps.spec.settings import Resources
from sweeps.spec.settings import check_gpus as share_of_gpu

LAPTOP = Node("laptop", 8)
WORKSTATION = Node("workstation", 16, 2, gpu_memory_mb=(24_000, 24_000))
SERVER = Node("server", 64, 8, {"fast": 2}, gpu_memory_mb=(80_000,) * 8)
CONFIG = trial_config({"algorithm": {"name": "car_ft"}})


@given(st.integers(1, 100), st.integers(1, 16))
def test_a_share_of_1_in_n_lets_n_runs_on_each_gpu(runs: int, gpus: int) -> None:
    need = Need(1, share_of_gpu(1 / runs))
    assert Node("node", 10_000, gpus).fits(need) == runs * gpus


@given(
    st.floats(0.5, 64),
    st.sampled_from([0.0, 0.25, 0.3333, 0.5, 1.0, 2.0]),
    st.floats(0, 256),
    st.integers(0, 16),
)
def test_what_fits_never_takes_more_than_there_is(
    cpus: float, gpus: float, has_cpus: float, has_gpus: int
) -> None:
    fits = Node("node", has_cpus, has_gpus).fits(Need(cpus, gpus))
    assert fits >= 0
    assert fits * cpus <= has_cpus * 1.000001
    assert fits * gpus <= has_gpus + 1e-6
    more = Node("node", has_cpus + cpus, has_gpus + max(1, int(gpus))).fits(Need(cpus, gpus))
    assert more >= fits + 1


def test_a_run_with_several_gpus_has_them_on_one_node() -> None:
    assert slots(Need(1, 2), [Node("a", 9, 1), Node("b", 9, 1)]) == 0
    assert slots(Need(1, 2), [Node("a", 9, 3), Node("b", 9, 2)]) == 2


def test_runs_at_once_are_the_sum_over_nodes_and_at_most_parallel() -> None:
    need = Need(8, 0.5)
    assert slots(need, [LAPTOP, WORKSTATION, SERVER]) == 0 + 2 + 8
    assert slots(need, [LAPTOP, WORKSTATION, SERVER], parallel=3) == 3
    assert slots(Need(1, 0, {"fast": 1}), [LAPTOP, WORKSTATION, SERVER]) == 2


@pytest.mark.parametrize(
    ("asked", "supply", "parallel", "need"),
    [
        ({}, [LAPTOP], None, Need(1)),
        ({}, [LAPTOP], 2, Need(4)),
        ({}, [LAPTOP], 100, Need(1)),
        ({}, [LAPTOP, SERVER], 2, Need(8, 1, {})),
        ({}, [WORKSTATION], None, Need(8, 1)),
        ({"gpus": 0.5}, [WORKSTATION], None, Need(4, 0.5)),
        ({"gpus": 0}, [WORKSTATION], None, Need(1, 0)),
        ({"cpus": 3}, [SERVER], None, Need(3, 1)),
        ({"cpus": 2, "custom": {"fast": 1}}, [SERVER], 4, Need(2, 1, {"fast": 1})),
    ],
)
def test_what_a_file_leaves_open_is_an_even_share(
    asked: dict[str, Any], supply: list[Node], parallel: int | None, need: Need
) -> None:
    assert need_of(Resources(**asked), supply, parallel) == need


def test_only_what_no_node_can_ever_meet_is_refused() -> None:
    assert refusal(Need(8, 0.25), [LAPTOP, WORKSTATION]) is None
    told = refusal(Need(9, 1, {"fast": 1}), [LAPTOP, WORKSTATION])
    assert told is not None
    assert told.splitlines() == [
        "no node can ever meet `resources`: one run needs 9 CPUs, 1 GPU, 1 fast; there are",
        "  laptop: 8 CPUs, 0 GPUs, 0 fast",
        "  workstation: 16 CPUs, 2 GPUs, 0 fast",
    ]
    assert refusal(Need(1), []) is not None


@given(st.integers(2, 100), st.floats(1, 100_000))
def test_a_share_is_refused_exactly_when_earlier_runs_took_more(runs: int, peak: float) -> None:
    need = Need(1, share_of_gpu(1 / runs))
    told = too_little_memory(need, [WORKSTATION, SERVER], peak)
    assert (told is not None) == (peak > 24_000 * need.gpus)


def test_a_refused_share_names_the_node_and_the_largest_share_that_fits() -> None:
    told = too_little_memory(Need(1, 0.25), [SERVER, WORKSTATION], 7_900.0)
    assert told == (
        "resources.gpus: 0.25 of a GPU of workstation is 6000 MiB, but earlier runs of this model "
        "and batch took 7900 MiB; at most 3 such runs fit: say gpus: 0.3333"
    )
    assert "none fits" in str(too_little_memory(Need(1, 0.5), [WORKSTATION], 30_000.0))


@pytest.mark.parametrize(
    ("need", "supply", "peak"),
    [
        (Need(1, 1), [WORKSTATION], 90_000.0),
        (Need(1, 0.5), [WORKSTATION], None),
        (Need(1, 0.5), [Node("unknown", 8, 1)], 90_000.0),
        (Need(1, 0), [WORKSTATION], 90_000.0),
    ],
)
def test_memory_that_nobody_knows_or_shares_refuses_nothing(
    need: Need, supply: list[Node], peak: float | None
) -> None:
    assert too_little_memory(need, supply, peak) is None


def write_run(runs: Path, name: str, peaks: list[float], **changes: Any) -> None:
    """A run as the core leaves it."""
    config = CONFIG.as_dict()
    config["optim"] |= changes.get("optim", {})
    config["model"] |= changes.get("model", {})
    (runs / name).mkdir(parents=True)
    (runs / name / "config.json").write_text(
        json.dumps({"identity": {"device": changes.get("device", "cuda")}, "config": config})
    )
    history = [{"metrics": {}}, *({"metrics": {"system/peak_memory_mb": p}} for p in peaks)]
    (runs / name / "history.json").write_text(json.dumps(history))


def test_peak_memory_is_of_cuda_runs_with_the_same_model_and_batch(tmp_path: Path) -> None:
    assert peak_memory_mb(tmp_path, CONFIG) is None
    write_run(tmp_path, "a", [900.0, 1000.0])
    write_run(tmp_path, "b", [950.0])
    write_run(tmp_path, "on the CPU", [9000.0], device="cpu")
    write_run(tmp_path, "smaller batch", [9000.0], optim={"micro_batch": 2})
    write_run(tmp_path, "other model", [9000.0], model={"name": "ViT-L-14"})
    write_run(tmp_path, "just begun", [])
    assert peak_memory_mb(tmp_path, CONFIG) == 1000.0


LISTING = "0, GPU-aaaa, 24000, 7.5\n1, GPU-bbbb, 80000, 9.0\n2, GPU-cccc, [N/A], [N/A]\n"
TURING, HOPPER, UNKNOWN = Gpu(24000.0, bf16=False), Gpu(80000.0, bf16=True), Gpu()


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, [TURING, HOPPER, UNKNOWN]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [HOPPER, TURING]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bb"}, [HOPPER]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, [TURING]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1234"}, [Gpu(bf16=True)]),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(environ: dict[str, str], gpus: list[Gpu]) -> None:
    assert visible_gpus(environ, LISTING) == gpus


def test_a_node_computes_bf16_where_each_of_its_gpus_is_known_to() -> None:
    gpus = {None: [HOPPER, UNKNOWN], False: [HOPPER, TURING, UNKNOWN], True: [HOPPER, HOPPER]}
    assert {bf16: Node("n", 8, 2).with_gpus(having).bf16 for bf16, having in gpus.items()} == {
        bf16: bf16 for bf16 in gpus
    }
    assert Node("n", 8).with_gpus([]).bf16 is None
    assert Node("n", 8, 2).with_gpus([HOPPER, UNKNOWN]).gpu_memory_mb == (80000.0,)


def test_this_machine_is_told_as_it_is() -> None:
    machine = this_machine()
    assert machine.cpus >= 1
    assert machine.fits(Need(1, 0)) >= 1
    assert visible_gpus({}, "no devices were found\n") == []
