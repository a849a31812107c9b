"""Where does the processor time of a run go: the built-in data, or photographs?

    python -m benchmarks.profiles [--photographs] [--algorithm car_ft] [--again] [--json]

One run of the shipped recipe `kl_weight` by `train()` on one thread, behind the zero-shot baseline,
under cProfile, which counts processor time; it makes small functions look slower than they are.
`--again`: behind an earlier run with the same seed, so that the bank has what runs share.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from carft_core.config import TrialConfig, trial_config
from carft_core.train import train
from sweeps.bench.data import make
from sweeps.bench.measurement import describe_machine
from sweeps.bench.preload import recipe_config

Times = Mapping[tuple[str, str], float]
PHOTOGRAPHS = 600
WEIGHT = {"car_ft": {"kl_weight": 1.0}}


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--algorithm", default="fine_tune")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="carft-profile-") as scratch:
        os.environ["CARFT_CACHE"] = f"{scratch}/cache"  # as a first run finds it
        folder = Path(scratch) / "photographs"
        if options.photographs:
            make(folder, PHOTOGRAPHS, tests=PHOTOGRAPHS)
        train(config_of("zero_shot", folder), 0, workdir=Path(scratch) / "zero_shot")
        config = config_of(options.algorithm, folder)
        if options.again:
            train(config, 0, workdir=Path(scratch) / "before")
        profile = cProfile.Profile(timer=time.process_time)
        result = profile.runcall(train, config, 0, workdir=Path(scratch) / "run")
        assert result is not None
    parts = shares(times_of(profile))
    if options.json:
        sys.stdout.write(json.dumps({"machine": describe_machine(), "seconds": parts}) + "\n")
        return
    total = sum(parts.values())
    rows = [f"| {part} | {of:.1f} | {100 * of / total:.0f} % |" for part, of in parts.items()]
    head = ["| part | seconds | of the run |", "|---|---|---|"]
    sys.stdout.write("\n".join([describe_machine(), *head, *rows, f"{total:.1f} s in all"]) + "\n")


def config_of(algorithm: str, photographs: Path) -> TrialConfig:
    """The run: of the recipe, or the same on photographs."""
    if not photographs.exists():
        return recipe_config(algorithm)
    fields: dict[str, Any] = recipe_config(algorithm).as_dict()
    fields["data"] = {"family": "image_folder", "root": str(photographs)}
    fields["algorithm"] = {"name": algorithm, **WEIGHT.get(algorithm, {})}
    return trial_config(fields)


def times_of(profile: cProfile.Profile) -> Times:
    """Seconds of each function with all that it calls, by the name of its file and its own."""
    seconds: dict[tuple[str, str], float] = {}
    stats: Any = pstats.Stats(profile)
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():
        key = (Path(file).name, name)
        seconds[key] = seconds.get(key, 0.0) + cumulative
    return seconds


def shares(times: Times) -> dict[str, float]:
    """Seconds of the parts of a run, which add up to the whole."""

    def of(file: str, name: str) -> float:
        return times.get((file, name), 0.0)

    whole = of("train.py", "train")
    training = of("train.py", "_train_epoch")
    backward = times.get(("~", "<method 'run_backward' of 'torch._C._EngineBase' objects>"), 0.0)
    step, closure = of("train.py", "_update"), of("train.py", "closure")
    encode, views = of("teacher.py", "encode"), of("teacher.py", "views")
    return {
        "training, backward": backward,
        "training, forward and the rest of the loss": closure - backward,
        "training, optimiser and clipping": step - closure,
        "training, loading": training - step,
        "evaluation, forward": encode - views,
        "evaluation, loading": views,
        "evaluation, metrics and predictions": of("evaluate.py", "measure")
        + of("train.py", "_validate")
        - encode,
        "opening, merging, checkpoints, files": whole
        - training
        - of("evaluate.py", "measure")
        - of("train.py", "_validate"),
    }


if __name__ == "__main__":
    main()
