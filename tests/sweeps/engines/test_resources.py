"""Need against supply: what is refused, how many runs fit at once, and what is left open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines import resources
from carft_sweep.sweeps.engines.resources import Gpu, Node, RunRequirements, visible_gpus
from carft_sweep.sweeps.spec.settings import Resources
from carft_sweep.sweeps.spec.settings import check_gpus as share_of_gpu

LAPTOP = Node("laptop", 8)
WORKSTATION = Node("workstation", 16, 2, gpu_memory_mb=(24_000, 24_000))
SERVER = Node("server", 64, 8, {"fast": 2}, gpu_memory_mb=(80_000,) * 8)


@given(st.integers(1, 100), st.integers(1, 16))
def test_a_share_of_1_in_n_lets_n_runs_on_each_gpu(runs: int, gpus: int) -> None:
    need = RunRequirements(1, share_of_gpu(1 / runs))
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
    fits = Node("node", has_cpus, has_gpus).fits(RunRequirements(cpus, gpus))
    assert fits >= 0
    assert fits * cpus <= has_cpus * 1.000001
    assert fits * gpus <= has_gpus + 1e-6
    larger = Node("node", has_cpus + cpus, has_gpus + max(1, int(gpus)))
    assert larger.fits(RunRequirements(cpus, gpus)) >= fits + 1


def test_runs_at_once_are_the_sum_over_nodes_and_at_most_parallel() -> None:
    need, nodes = RunRequirements(8, 0.5), [LAPTOP, WORKSTATION, SERVER]
    assert resources.max_concurrent_runs(need, nodes) == 0 + 2 + 8
    assert resources.max_concurrent_runs(need, nodes, parallel=3) == 3
    assert resources.max_concurrent_runs(RunRequirements(1, 0, {"fast": 1}), nodes) == 2
    # A run with several GPUs has them on one node.
    for gpus, runs in (((1, 1), 0), ((3, 2), 2)):
        nodes = [Node(str(number), 9, has) for number, has in enumerate(gpus)]
        assert resources.max_concurrent_runs(RunRequirements(1, 2), nodes) == runs


def test_what_a_file_leaves_open_is_an_even_share() -> None:
    cases: list[tuple[dict[str, Any], list[Node], int | None, RunRequirements]] = [
        ({}, [LAPTOP], None, RunRequirements(1)),
        ({}, [LAPTOP], 2, RunRequirements(4)),
        ({}, [LAPTOP, SERVER], 2, RunRequirements(8, 1, {})),
        ({}, [WORKSTATION], None, RunRequirements(8, 1)),
        ({"gpus": 0.5}, [WORKSTATION], None, RunRequirements(4, 0.5)),
        ({"cpus": 3}, [SERVER], None, RunRequirements(3, 1)),
        ({"cpus": 2, "custom": {"fast": 1}}, [SERVER], 4, RunRequirements(2, 1, {"fast": 1})),
    ]
    for asked, supply, parallel, need in cases:
        assert resources.requirements_of(Resources(**asked), supply, parallel) == need


def test_only_what_no_node_can_ever_meet_is_refused() -> None:
    possible = RunRequirements(8, 0.25)
    assert resources.feasible(possible, [LAPTOP, WORKSTATION]) is possible
    with pytest.raises(RequestError) as refused:
        resources.feasible(RunRequirements(9, 1, {"fast": 1}), [LAPTOP, WORKSTATION])
    assert str(refused.value).splitlines() == [
        "no node can ever meet `resources`: one run needs 9 CPUs, 1 GPU, 1 fast; there are",
        "  laptop: 8 CPUs, 0 GPUs, 0 fast",
        "  workstation: 16 CPUs, 2 GPUs, 0 fast",
    ]
    with pytest.raises(RequestError, match="no nodes"):
        resources.feasible(RunRequirements(1), [])


LISTING = """\
0, GPU-aaaa, 24000, 7.5, [N/A]
1, GPU-bbbb, 80000, 9.0, Disabled
2, GPU-cccc, [N/A], [N/A], [N/A]
"""
TURING, HOPPER, UNKNOWN = Gpu(24000.0, bf16=False), Gpu(80000.0, bf16=True), Gpu()


def named(**gpus: Gpu) -> list[Gpu]:
    return [replace(gpu, name=name.replace("_", "-")) for name, gpu in gpus.items()]


def test_gpus_are_counted_as_cuda_counts_them() -> None:
    assert visible_gpus({}, LISTING) == named(GPU_aaaa=TURING, GPU_bbbb=HOPPER, GPU_cccc=UNKNOWN)
    for variable, gpus in {
        "": [],
        "1,0": named(**{"1": HOPPER, "0": TURING}),
        "GPU-bb": named(GPU_bb=HOPPER),
        "0,7,1": named(**{"0": TURING}),
        "MIG-1234": named(MIG_1234=Gpu(bf16=True)),
    }.items():
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": variable}, LISTING) == gpus
    assert visible_gpus({}, "no devices were found\n") == []
    assert resources.this_machine().fits(RunRequirements(1, 0)) >= 1


def test_a_slice_of_mig_is_a_gpu_with_the_memory_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = "0, GPU-aaaa, 81559, 9.0, Enabled\n1, GPU-bbbb, 80000, 9.0, Disabled\n"
    slices = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-1234)
  MIG 1g.10gb     Device  1: (UUID: MIG-5678)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ $1 = -L ] && echo '{slices}' || echo '{listing}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    large, small = (Gpu(size * 1e9 / 2**20, bf16=True) for size in (40, 10))
    assert visible_gpus({}) == named(GPU_bbbb=HOPPER, MIG_1234=large, MIG_5678=small)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-5678"}) == named(MIG_5678=small)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == named(**{"0": Gpu(bf16=True)})
    program.write_text(f"#!/bin/sh\n[ $1 = -L ] || echo '{LISTING}'\n")
    assert len(visible_gpus({})) == 3


def test_a_node_computes_bf16_where_each_of_its_gpus_is_known_to() -> None:
    cases = {None: [HOPPER, UNKNOWN], False: [HOPPER, TURING, UNKNOWN], True: [HOPPER, HOPPER]}
    for bf16, gpus in cases.items():
        assert Node("n", 8, 2).with_gpus(gpus).bf16 is bf16
    assert Node("n", 8).with_gpus([]).bf16 is None
    assert Node("n", 8, 2).with_gpus([HOPPER, UNKNOWN]).gpu_memory_mb == (80000.0,)


def test_a_control_groups_limit_bounds_the_memory_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(available=2**40)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    limits = {None: 2**20, "max": 2**20, str(2**30): 2**10}
    for limit, megabytes in limits.items():
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert resources.memory_for_runs_mb() == pytest.approx(resources.FREE_SHARE * megabytes)
