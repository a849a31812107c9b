"""How threads wait is said before torch is loaded, unless the user has said it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def environment(module: str, **said: str) -> dict[str, str]:
    """What a process that imports `module` and nothing else has of NAMES."""
    script = (
        f"import os, sys, {module}; assert 'torch' not in sys.modules;"
        f"print(*(f'{{n}}={{os.environ[n]}}' for n in {NAMES} if n in os.environ))"
    )
    environ = {name: value for name, value in os.environ.items() if name not in NAMES} | said
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    return dict(part.split("=") for part in output.split())


@pytest.mark.parametrize(
    "module", ["carft_sweep", "carft_sweep.sweeps.cli", "carft_sweep.sweeps.engines.worker"]
)
def test_threads_wait_passively(module: str) -> None:
    assert environment(module) == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_says_is_kept(name: str) -> None:
    assert environment("carft_sweep", **{name: "1"}) == {name: "1"}
