"""How many functions does a reader pass from here to there? Five ways through the product.

    python -m benchmarks.walks              # all of them, some minutes
    python -m benchmarks.walks 1 5          # some of them
    python -m benchmarks.walks --list 2     # the functions of one, in order

`carft-sweep` runs small sweeps as a user would, on the CPU with the local engine, and
`sys.setprofile` watches every process of theirs, the driver and its workers. What counts is a
*function of ours*: one with a name, in a file of `carft_core`, `sweeps` or `tracking`. Lambdas,
comprehensions, generator expressions, bodies of modules and of classes, and properties (whoever
reads the code reads an attribute) are none. Its caller is the nearest function of ours on the
stack, so that contextlib or pydantic in between do not matter. Each counts once, however often it
is called. An *entry* is a function that is called from another file, on a main thread: constructors
are (of a data class too), helpers within one file are not, nor is what is called by an import. The
validators of a file that pydantic calls are one entry. What one file of `carft_core` calls in
another is none, since the core's own walks are in docs/architecture.md.

1. `run` to a recorded trial: entries, from `main` until the handler's `finished` returns for the
   last seed of the first trial (the zero-shot baseline, then three seeds; a new home).
2. A metric value to MLflow: functions that have the value, from the first `EpochReport` that holds
   it to the call of MLflow's `log_batch`. A function has it that takes or returns it: the number,
   text with its digits, a container or an object of ours that holds it, other than its own `self`.
   So does one that calls such a function. The driver's main thread waits until it has arrived,
   so that nothing later counts; what prints it meanwhile, or may prune by it, does.
3. Predictions to the verdict: functions of `sweeps` and `tracking`, in the command `compare --json`
   on a home with two arms of five seeds, behind the parsing of arguments.
4. A learning rate from YAML to the optimiser: steps, which are the files in which a function has
   the bare number (alone, in text, in dictionaries and sequences; an object that holds it is
   a sealed envelope, and passing it on is no step), before a torch optimiser is constructed. Main
   threads only, and neither `tracking` nor `sweeps/results`, which pass it to MLflow. Beside it how
   often `carft_core.config.trial.trial_config` got it. The sweep has one trial, of random search.
5. Out of memory to retry: entries, from the `torch.OutOfMemoryError` that a loss raises in the
   worker to the start of the next worker process.

The goals were set by reading the code, which overlooks some of what a profiler sees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.walks.recorder import LOGGED, ROOT

HERE = Path(__file__).parent
RATE = 0.0007310585786
"""A learning rate that is no other number of a run."""
Event = Mapping[str, Any]

SWEEP = """
name: walks
import: [{probe}]
method: {method}
run_cap: {run_cap}
metric: {{name: id/val/top1, goal: maximize}}
parameters: {{optim.lr: {{values: {rates}}}}}
seeds: {seeds}
baselines: {baselines}
retries: {{out_of_memory: 1}}
trial:
  model: {{name: builtin}}
  data: {{family: icon_shift}}
  algorithm: {{name: {algorithm}}}
  optim: {{steps: 1, batch_size: 8}}
  merges: [{{name: wise_ft, alphas: [0.0, 0.5]}}]
  device: cpu
"""


class Product:
    """`carft-sweep` in a folder of its own, with or without a record of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(
        self,
        *,
        rates: Iterable[float] = (1e-4,),
        seeds: int = 1,
        algorithm: str = "probe",
        baselines: Iterable[str] = (),
        method: str = "grid",
        run_cap: int | None = None,
    ) -> None:
        """A sweep file."""
        text = SWEEP.format(
            probe=json.dumps(str(HERE / "probe.py")),
            rates=list(rates),
            seeds=list(range(seeds)),
            algorithm=algorithm,
            baselines=list(baselines),
            method=method,
            run_cap=json.dumps(run_cap),
        )
        (self._folder / "walks.yaml").write_text(text)

    def run(self) -> None:
        """Run the sweep, always_continue."""
        self._call("run", "walks.yaml", "--engine", "local", "--quiet")

    def record(self, *arguments: str, value: float | None = None, **environ: str) -> list[Event]:
        """The events of a command, in order."""
        file = self._folder / "events.jsonl"
        path = [str(ROOT), str(HERE / "hook"), os.environ.get("PYTHONPATH", "")]
        environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "CARFT_WALK": str(file)}
        if value is not None:
            environ["CARFT_WALK_VALUE"] = repr(value)
        self._call(*arguments, **environ)
        events = [json.loads(line) for line in file.read_text().splitlines()]
        return sorted(events, key=lambda event: event["at"])

    def _call(self, *arguments: str, **environ: str) -> None:
        command = [
            sys.executable,
            "-m",
            "carft_sweep",
            *arguments,
            "--home",
            str(self._folder / "home"),
        ]
        environ = {"PYTHONPATH": str(ROOT), **os.environ, **environ}
        done = subprocess.run(
            command, cwd=self._folder, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def functions(events: Iterable[Event]) -> list[str]:
    """Distinct functions, in the order of their first call."""
    return list(dict.fromkeys(event["function"] for event in events))


def entries(events: Iterable[Event]) -> list[str]:
    """Distinct functions that are called from another file, on main threads."""
    names: dict[str, None] = {}
    for event in events:
        file, before = event["file"], event["caller_file"]
        if not event["main"] or file == before:
            continue
        if (
            before is not None
            and file.startswith("carft_core/")
            and before.startswith("carft_core/")
        ):
            continue
        names[f"{file}:(validators)" if event["validated"] else event["function"]] = None
    return list(names)


def between(
    events: Iterable[Event], first: str | None, last: str, *, count: int = 1
) -> Iterator[Event]:
    """Calls behind the mark `first`, up to the `count`-th mark `last` behind it."""
    open_, seen = first is None, 0
    for event in events:
        mark = event.get("mark")
        if mark is None:
            if open_:
                yield event
        elif mark == first:
            open_ = True
        elif mark == last and open_:
            seen += 1
            if seen == count:
                return
    raise SystemExit(f"the way ended before {last}")


@dataclass(frozen=True)
class Walk:
    """What is counted, in order, and what is said beside the count."""

    names: list[str]
    beside: str = ""


def walk_trial(folder: Path) -> Walk:
    """See the module: 1."""
    product = Product(folder)
    product.write(seeds=3, baselines=["zero_shot"])
    events = product.record("run", "walks.yaml", "--engine", "local")
    return Walk(entries(between(events, None, "finished", count=4)))


def walk_metric(folder: Path) -> Walk:
    """See the module: 2."""
    product = Product(folder)
    product.write()
    events = product.record("run", "walks.yaml", "--engine", "local", value=LOGGED)
    names: dict[str, None] = {}
    began = False
    for event in events:
        if event.get("mark") == "tracked":
            return Walk([*names])
        if "mark" in event:
            continue
        began = began or event["function"].endswith(":EpochReport")
        if began:
            for name in (event["caller"], event["function"]):
                if name and not (event["generated"] and name == event["function"]):
                    names[name] = None
    raise SystemExit("the value never came to MLflow")


def walk_verdict(folder: Path) -> Walk:
    """See the module: 3."""
    product = Product(folder)
    product.write(seeds=5, algorithm="car_ft", baselines=["zero_shot", "fine_tune"])
    product.run()
    events = product.record("compare", "walks", "--json")
    calls = [event for event in events if "mark" not in event]
    parsing = "sweeps/cli/parser.py"
    first = next(i for i, event in enumerate(calls) if _leaves_main(event, parsing))
    ours = (
        event
        for event in calls[first:]
        if not event["generated"] and not event["file"].startswith(("carft_core/", parsing))
    )
    return Walk(functions(ours))


def _leaves_main(event: Event, parsing: str) -> bool:
    """Whether `main` calls the command."""
    file, caller = str(event["file"]), event["caller"]
    called_by_main = caller == "sweeps/cli/__init__.py:main"
    return called_by_main and file.startswith("sweeps/cli/") and file != parsing


def walk_rate(folder: Path) -> Walk:
    """See the module: 4."""
    product = Product(folder)
    product.write(rates=[RATE], method="random", run_cap=1)
    events = product.record("run", "walks.yaml", "--engine", "local", value=RATE)
    names: dict[str, None] = {}
    validated = 0
    for event in events:
        if event.get("mark") == "optimiser":
            return Walk([*names], f"trial_config got it {validated} times")
        if "mark" in event or not event["plain"] or not event["main"]:
            continue
        if not event["file"].startswith(("tracking/", "sweeps/results/")):
            names[event["file"]] = None
        called = event["event"] == "call" and event["function"].endswith(":trial_config")
        validated += called
    raise SystemExit("the learning rate never came to an optimiser")


def walk_retry(folder: Path) -> Walk:
    """See the module: 5."""
    product = Product(folder)
    product.write()
    (folder / "oom").touch()
    events = product.record("run", "walks.yaml", CARFT_WALK_OOM=str(folder / "oom"))
    return Walk(entries(between(events, "raised", "process")))


WALKS: Mapping[int, tuple[str, str, int, Callable[[Path], Walk]]] = {
    1: ("run to a recorded trial", "entries", 60, walk_trial),
    2: ("a metric value to MLflow", "functions", 16, walk_metric),
    3: ("predictions to the verdict", "functions", 70, walk_verdict),
    4: ("a learning rate from YAML to the optimiser", "steps", 10, walk_rate),
    5: ("out of memory to retry", "entries", 11, walk_retry),
}


def main() -> None:
    """Count, or list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("walks", nargs="*", type=int, choices=[[], *WALKS], help="which (all)")
    parser.add_argument("--list", type=int, choices=list(WALKS), help="the functions of one walk")
    options = parser.parse_args()
    numbers = [options.list] if options.list else options.walks or list(WALKS)
    for number in numbers:
        title, unit, goal, walk = WALKS[number]
        with tempfile.TemporaryDirectory(prefix="carft-walk-") as folder:
            found = walk(Path(folder))
        files = len({name.partition(":")[0] for name in found.names})
        if options.list:
            sys.stdout.writelines(f"{i:4} {name}\n" for i, name in enumerate(found.names, 1))
        count = f"{len(found.names)} {unit} in {files} files"
        beside = f"; {found.beside}" if found.beside else ""
        sys.stdout.write(f"{number}  {title:44} {count:28} goal {goal}{beside}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
