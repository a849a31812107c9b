"""Robust fine-tuning of CLIP: one training loop, one evaluation, many algorithms."""

import os

# Nothing is sent home unless the user asks for it; the hub's client reads this when imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Threads of OpenMP spin while they wait for each other: beside another busy process on one that
# does not run, and a step takes many times as long. Read when torch is loaded, and inherited by
# every process that is started from here.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
    os.environ["OMP_WAIT_POLICY"] = "passive"

# Whether attention's input projection is one matrix product or one an image depends, in PyTorch,
# on whether its weights need a gradient. Where the two round differently, as on AMD's CPUs, the
# teacher and a student of equal weights differ, and CAR-FT's KL is not 0 at step 0.
os.environ.setdefault("TORCH_LINEAR_FLATTEN_3D", "1")

# cuBLAS reads this once, at the first product of a process, and a worker that is kept warm serves
# runs with `deterministic` and runs without.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
