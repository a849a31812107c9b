"""How threads wait, and what cuBLAS works in, is said before torch is loaded, unless the user has
said it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def environment(module: str, **settings: str) -> dict[str, str]:
    """What a process that imports `module` and nothing else has of NAMES."""
    script = (
        f"import os, sys, {module}; assert 'torch' not in sys.modules;"
        f"print(*(f'{{n}}={{os.environ[n]}}' for n in {(*NAMES, CUBLAS)} if n in os.environ))"
    )
    environ = {name: value for name, value in os.environ.items() if name not in (*NAMES, CUBLAS)}
    output = subprocess.check_output(
        [sys.executable, "-c", script], env=environ | settings, text=True
    )
    return dict(part.split("=") for part in output.split())


@pytest.mark.parametrize(
    "module", ["carft_sweep", "carft_sweep.sweeps.cli", "carft_sweep.sweeps.engines.worker"]
)
def test_threads_wait_passively_and_cublas_works_the_same_way_each_time(module: str) -> None:
    assert environment(module) == {"OMP_WAIT_POLICY": "passive", CUBLAS: ":4096:8"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_says_is_kept(name: str) -> None:
    settings = {name: "1", CUBLAS: ":16:8"}
    assert environment("carft_sweep", **settings) == settings
