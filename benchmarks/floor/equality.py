"""Does the product still compute the same results as before a change?

    python -m benchmarks.floor.equality dump before.json [--epochs 2] [--threads 1]
    ... change the code ...
    python -m benchmarks.floor.equality dump after.json
    python -m benchmarks.floor.equality compare before.json after.json [--within 1e-6]

Method. `dump` runs the built-in model on the built-in data with seed 0 on one thread: `zero_shot`,
`fine_tune`, and `car_ft` at KL weight 3, 2 epochs each, with WiSE-FT at 0.5 where something is
trained, and writes the metrics of the run's own model, of its merges, and of every epoch. The file
is JSON: by algorithm {"metrics": {name: value}, "merges": {label: {name: value}}, "history":
[{name: value} of epochs 0, 1, ...], "seconds": of training}.

How to read it. `compare` prints the greatest absolute difference of each kind of metric and where
it is, and which names stand on one side only; names under `system/` are left out. On one machine
with one thread unchanged arithmetic gives 0. Other layouts or fused operations change the last bits
of a step, which training then amplifies: nll and the losses move by about 1e-4, a top-1 by an image
or two; top-1 has steps of one image, so that small numbers there say little. With `--within` the
command fails when a difference is greater, or a name of the first file is missing in the second.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carft_sweep.sweeps.bench.measurement import describe_machine

ALGORITHMS: tuple[str | dict[str, Any], ...] = (
    "zero_shot",
    "fine_tune",
    {"name": "car_ft", "kl_weight": 3.0},
)
SEED = 0
Place = tuple[str, str]
"""(where: algorithm and model or epoch, name of the metric)."""


def dump(file: Path, length: int, threads: int) -> None:
    """Run the algorithms and write what they came to."""
    import torch

    from carft_sweep.carft_core.config import trial_config
    from carft_sweep.carft_core.train import epochs, train

    torch.set_num_threads(threads)
    results: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        merges = [{"name": "wise_ft", "alphas": [0.5]}]
        config = trial_config(
            {"algorithm": algorithm, "merges": merges, "optim": {"epochs": length}}
        )
        with tempfile.TemporaryDirectory(prefix="carft-equality-") as folder:
            reports = list(epochs(config, SEED, workdir=Path(folder)))
            result = train(config, SEED, workdir=Path(folder))
        assert result is not None
        results[str(algorithm)] = {
            "metrics": dict(result.metrics),
            "merges": {label: dict(item["metrics"]) for label, item in result.merges.items()},
            "history": [dict(report.metrics) for report in reports],
            "seconds": result.seconds,
        }
    file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def values_of(results: Mapping[str, Any]) -> Iterator[tuple[Place, float]]:
    """Every compared value of a file that `dump` wrote."""
    for algorithm, result in results.items():
        parts = {f"{algorithm}, unmerged": result["metrics"]}
        parts |= {f"{algorithm}, {label}": of for label, of in result["merges"].items()}
        parts |= {f"{algorithm}, epoch {at}": of for at, of in enumerate(result["history"])}
        for where, metrics in parts.items():
            for name, value in metrics.items():
                if not name.startswith("system/"):
                    yield (where, name), value


def kind_of(name: str) -> str:
    """`train/loss` as it is, `context/.../kl` as `context kl`, others by their last part."""
    group, _, rest = name.partition("/")
    last = name.rpartition("/")[2]
    if group == "train":
        return name
    if group in ("context", "gap", "hmean", "gain", "retention"):
        return f"{group} {last}"
    return f"mean {last}" if rest.startswith("mean/") else last


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, float]:
    """(the report, the greatest difference; infinite when a name of `before` is missing)."""
    first, second = dict(values_of(before)), dict(values_of(after))
    greatest: dict[str, tuple[float, Place]] = {}
    counts: dict[str, int] = {}
    for place, value in first.items():
        if place in second:
            kind, difference = kind_of(place[1]), abs(second[place] - value)
            difference = math.inf if math.isnan(difference) else difference
            counts[kind] = counts.get(kind, 0) + 1
            if kind not in greatest or difference > greatest[kind][0]:
                greatest[kind] = (difference, place)
    lines = [f"{'kind':28} {'values':>6} {'greatest':>10}  where"]
    for kind, (difference, (where, name)) in sorted(greatest.items()):
        at = f"{where}: {name}, {first[where, name]:.6g} to {second[where, name]:.6g}"
        lines.append(f"{kind:28} {counts[kind]:6} {difference:10.3g}  {at if difference else ''}")
    for title, here, there in (("gone", first, second), ("new", second, first)):
        missing = [place for place in here if place not in there]
        names = ", ".join(dict.fromkeys(name for _, name in missing))
        lines.append(f"{title}: {len(missing)} values{': ' if names else ''}{names}")
    overall = max((difference for difference, _ in greatest.values()), default=math.inf)
    report = "\n".join(line.rstrip() for line in lines) + "\n"
    return report, math.inf if first.keys() - second.keys() else overall


def main() -> int:
    """Dump or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    dumping = commands.add_parser("dump", help="run, and write the metrics to a file")
    dumping.add_argument("file", type=Path)
    dumping.add_argument("--epochs", type=int, default=2)
    dumping.add_argument("--threads", type=int, default=1)
    comparing = commands.add_parser("compare", help="print the greatest differences of two files")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--within", type=float, help="fail when a difference is greater")
    options = parser.parse_args()
    sys.stdout.write(describe_machine() + "\n")
    if options.command == "dump":
        dump(options.file, options.epochs, options.threads)
        return 0
    read = (json.loads(file.read_text("utf-8")) for file in (options.before, options.after))
    report, greatest = compare(*read)
    sys.stdout.write(report)
    return int(options.within is not None and greatest > options.within)


if __name__ == "__main__":
    sys.exit(main())
