"""What is left of a sweep, how long it takes and how much disk."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carft_core.config import TrialConfig, trial_config
from carft_core.data import open_data
from carft_core.errors import RequestError
from carft_core.evaluate import predict
from carft_core.files import read_json
from carft_core.optim import schedule_of
from carft_core.predictions import write_predictions
from carft_core.prepare import Prepared, prepared
from carft_core.run import is_complete
from carft_core.train import epochs
from sweeps.engines.entry import failure_class, one_line
from sweeps.engines.resources import Hardware
from sweeps.home import Home
from sweeps.ledger.runs import OPTIMISER_STATE, Runs
from sweeps.ledger.trials import newest_generation
from sweeps.plan.tasks import Planner, Task, digests, merge_labels
from sweeps.space.distributions import assigned
from sweeps.space.sampling import quantile
from sweeps.spec.settings import After, RunsOf
from sweeps.spec.spec import SweepSpec
from tracking.comparison.runs import CONFIRMED

MOST = 200
"""So many runs of a home are looked at, the newest."""
WEIGHTS = ".safetensors"
"""How the names of files with weights end."""


@dataclass(frozen=True)
class Pace:
    """What the parts of one run take, in seconds."""

    step: float
    epoch: float
    """Behind each epoch: the validation and the checkpoint."""
    model: float
    """Behind the last one, for the run's own model and each merged one: every split."""

    def seconds(self, *, steps: int, epochs: int, models: int) -> float:
        """Of a run with so much before it."""
        return self.step * steps + self.epoch * epochs + self.model * models


@dataclass(frozen=True)
class Sample:
    """One run that was measured."""

    config: Mapping[str, Any]
    device: str
    pace: Pace
    bytes: int
    """That stay on disk once it is done, besides its weights."""
    weights: int = 0
    """Bytes of its weights, as far as they were kept."""

    def kept(self, config: TrialConfig) -> int:
        """The bytes that a run like it keeps on disk when it is done, with `config`."""
        return self.bytes + (self.weights if config.keep.weights else 0)


Likeness = Callable[[Mapping[str, Any]], object]


def _alike(config: Mapping[str, Any]) -> object:
    data = config["data"]
    return config["model"], data["family"], data.get("balanced"), config["optim"]["batch_size"]


def _alike_in_all(config: Mapping[str, Any]) -> object:
    return _alike(config), config["algorithm"]["name"]


def _anything(config: Mapping[str, Any]) -> object:
    del config
    return None


ALIKE = "runs with the same model, family, batch size and device"
ANY = "whatever runs there were: none had the same model, family, batch size and device"
_LIKENESS: Sequence[tuple[str, Likeness, bool]] = (
    (ALIKE, _alike_in_all, True),
    (ALIKE, _alike, True),
    (ANY, _anything, False),
)
"""From the best to the last resort; with the same device, or with any."""


class Experience:
    """Runs that were measured, and what they say of one that was not.

    `told` says what they are, where they stand for every run whatever it is.
    """

    def __init__(self, samples: Sequence[Sample], told: str | None = None) -> None:
        self._samples = samples
        self._told = told

    def of(self, config: TrialConfig) -> tuple[list[Sample], str] | None:
        """The runs most like one whose device is resolved, and in which way they are; None without
        any.
        """
        if self._told is not None:
            return list(self._samples), self._told
        asked, device = config.as_dict(), config.device.partition(":")[0]
        for how, key, same_device in _LIKENESS:
            found = [
                sample
                for sample in self._samples
                if key(sample.config) == key(asked) and (sample.device == device or not same_device)
            ]
            if found:
                return found, how
        return None


def usual(samples: Sequence[Sample]) -> Pace:
    """The medians, so that a run that slept for a night counts for no more than another."""
    return Pace(
        statistics.median(sample.pace.step for sample in samples),
        statistics.median(sample.pace.epoch for sample in samples),
        statistics.median(sample.pace.model for sample in samples),
    )


def experience(runs: Runs) -> Experience:
    """Of the runs of a home that were trained to their end."""
    trained = sorted(runs.path.glob("*/trained.json"), key=_age)[:MOST]
    return Experience([sample for file in trained for sample in _sample(runs, file.parent)])


def _sample(runs: Runs, folder: Path) -> Iterator[Sample]:
    known, state = read_json(folder / "config.json"), runs.read(folder.name)
    history = read_json(folder / "history.json") or []
    steps, waits = [], []
    for before, after in itertools.pairwise(history):
        count = after["step"] - before["step"]
        if count > 0:
            steps.append(after["seconds"] / count)
            span = (after["timestamp"] - before["timestamp"]) / 1000
            waits.append(max(0.0, span - after["seconds"]))
    if known is None or not steps:
        return
    ended = (read_json(folder / "trained.json") or {}).get("ended")
    end = state.ended - ended if state is not None and state.ended and ended else 0.0
    models = sum(1 for _ in folder.glob("evaluations/*/metrics.json"))
    yield Sample(
        known["config"],
        known["config"]["device"].partition(":")[0],
        Pace(statistics.median(steps), statistics.median(waits), max(0.0, end) / max(1, models)),
        *kept_bytes(folder),
    )


def kept_bytes(folder: Path) -> tuple[int, int]:
    """What a run has on disk, but for its optimiser's state: all besides its weights, and these."""
    files = [file for file in folder.rglob("*") if file.name != OPTIMISER_STATE and file.is_file()]
    weights = sum(file.stat().st_size for file in files if file.suffix == WEIGHTS)
    return sum(file.stat().st_size for file in files) - weights, weights


def _age(file: Path) -> float:
    return -file.stat().st_mtime


STEPS = 10
_WARM_UP = 2
"""Steps that are not timed: the first ones wait for what later ones find ready."""


def measure(config: TrialConfig, seed: int, *, threads: int | None) -> Sample:
    """Train `STEPS` steps and evaluate `id/val`; larger splits are taken to go as fast.

    Raises RequestError when the run cannot be trained at all, with the reason.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        _timed(config, seed, _WARM_UP)
        reports, kept, weights = _timed(config, seed, STEPS)
        stand = prepared(config)
        per_image = _bytes_per_image(config, stand) if config.keep.predictions else 0.0
    except RequestError:
        raise
    except Exception as error:  # whatever a run raises, it would raise in the sweep
        raise RequestError(
            f"the first run cannot be trained ({failure_class(error)}): {one_line(error)}"
        ) from error
    training = sum(report["seconds"] for report in reports)
    span = (reports[-1]["timestamp"] - reports[0]["timestamp"]) / 1000
    validation = max(0.0, span - training) / max(1, len(reports) - 1)
    images = sum(map(len, stand.measured().values()))
    pace = Pace(
        step=training / max(1, reports[-1]["step"]),
        epoch=validation,
        model=validation * images / max(1, len(stand.data.id_val)),
    )
    kept += round(per_image * images * (1 + len(merge_labels(config))))
    return Sample(config.as_dict(), stand.device.type, pace, kept, weights)


def measured(sample: Sample) -> Experience:
    """What one measurement says of every run."""
    return Experience([sample], f"{STEPS} steps and an evaluation of id/val, measured now")


def _timed(config: TrialConfig, seed: int, steps: int) -> tuple[list[dict[str, Any]], int, int]:
    """The reports of so many steps, and the bytes that were kept: of the weights, after others."""
    plain = config.as_dict()
    per_run = {"steps": min(steps, plain["optim"]["steps"] or steps), "epochs": None}
    plain["optim"] = {**plain["optim"], **per_run}
    short = trial_config(plain)
    with tempfile.TemporaryDirectory(prefix="carft-measure-") as scratch:
        workdir = Path(scratch)
        reports = [report.as_dict() for report in epochs(short, seed, workdir=workdir)]
        return reports, *kept_bytes(workdir)


def _bytes_per_image(config: TrialConfig, stand: Prepared) -> float:
    """Of the predictions of one model on disk; those of `id/val` stand for every split."""
    predicted = predict(stand.teacher.classifier, "id/val", stand.teacher)
    with tempfile.TemporaryDirectory(prefix="carft-measure-") as scratch:
        file = Path(scratch) / "predictions.parquet"
        write_predictions(file, [predicted], config.eval.logits)
        return file.stat().st_size / len(stand.data.id_val)


TYPICAL = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in its ranges a point lies that nobody has proposed yet: quantiles, for want of better."""


@dataclass(frozen=True)
class Work:
    """What a run has still before it."""

    config: TrialConfig
    steps: int
    epochs: int
    models: int

    @property
    def trains(self) -> bool:
        """Whether more than an evaluation is left."""
        return self.epochs > 0


@dataclass
class Plan:
    """What a sweep would do now. Times in seconds, sizes in MiB."""

    sweep: str
    method: str
    trials: int
    runs: int
    tasks: dict[str, int] = field(default_factory=dict)
    """How many of the runs each task has, where there are tasks."""
    done: int = 0
    reused: int = 0
    """Of those that are done: trained by another sweep, or the same as an earlier one of this."""
    to_evaluate: int = 0
    to_train: int = 0
    unknown: int = 0
    """Runs whose point a sampler has yet to choose."""
    to_confirm: int = 0
    """Runs on fresh seeds of settings that are still to be chosen."""
    to_combine: int = 0
    """Soups of runs that are still to be chosen."""
    epochs: int = 0
    """To be trained; for unknown runs as typical points of the space would."""
    seconds: float | None = None
    """Of work, one run after another."""
    at_once: int = 1
    """Runs side by side."""
    at_most: bool = False
    """Whether the sweep may well need less: it stops trials early, or when a target is reached."""
    measured: str | None = None
    """What the time is measured on."""
    disk_mb: float | None = None
    free_mb: float | None = None
    warnings: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    @property
    def wall_seconds(self) -> float | None:
        """As long as one waits for it."""
        return None if self.seconds is None else self.seconds / self.at_once

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {key: value for key, value in vars(self).items() if key != "work"}
        return {**plain, "wall_seconds": self.wall_seconds}


def make_plan(spec: SweepSpec, home: Home, hardware: Hardware) -> Plan:
    """Look at every run that is known before the sweep runs, and at what the home has of it.

    `hardware` is what a run would get.
    """
    notes: list[str] = []
    planner = Planner(spec, hardware, notes.append)
    settings = [*planner.baselines(), *_known_trials(planner, home)]
    known = sum(tasks[0].role == "trial" for tasks in settings)
    unknown = (spec.trial_count - known) * len(spec.seeds)
    by_task = _by_task(spec, settings)
    fresh = list(_known_confirmations(planner, home))
    confirmed = {tasks[0].algorithm for tasks in fresh}
    to_confirm = [name for name in spec.trained_algorithms if name not in confirmed]
    confirming = [
        work
        for name in to_confirm
        for work in _usual(planner, settings, name, len(spec.confirm_seeds))
    ]
    made = [(item, tasks) for item in spec.after for tasks in _known_soups(planner, home, item)]
    to_combine = sum(item not in [known for known, _ in made] for item in spec.after)
    settings += [*fresh, *(tasks for _, tasks in made)]
    plan = Plan(
        spec.name,
        spec.method,
        spec.trial_count,
        sum(map(len, settings)) + unknown + len(confirming) + to_combine,
        by_task,
        unknown=unknown,
        to_confirm=len(confirming),
        to_combine=to_combine,
        at_most=bool(spec.early_terminate or spec.race_seeds or spec.metric.target is not None),
        warnings=(*spec.warnings, *notes),
    )
    runs, seen = Runs(home.runs), set[str]()
    for tasks in settings:
        plan.rows.append(_row(plan, tasks, runs, seen))
    plan.work += [*_to_come(planner, unknown), *confirming]
    plan.epochs = sum(work.epochs for work in plan.work)
    return plan


def estimate(plan: Plan, experience: Experience) -> None:
    """Fill in time and disk, as far as runs were measured that tell."""
    seconds, sizes, ways = 0.0, 0.0, list[str]()
    for work in plan.work:
        found = experience.of(work.config)
        if found is None:
            return
        samples, how = found
        pace = usual(samples)
        seconds += pace.seconds(steps=work.steps, epochs=work.epochs, models=work.models)
        if work.trains:
            sizes += statistics.median(sample.kept(work.config) for sample in samples)
        ways.append(how)
    plan.seconds, plan.disk_mb = round(seconds, 1), round(sizes / 2**20, 1)
    # Where one run rests on less, the sum does.
    plan.measured = max(ways, key=len, default=None)


def _known_trials(planner: Planner, home: Home) -> Iterator[list[Task]]:
    """Of a grid every point; else what was proposed already and still is what it was."""
    spec = planner.spec
    if spec.method == "grid":
        yield from (planner.trial(params) for params in spec.points())
        return
    ledger = newest_generation(home, spec.name)
    for trial in () if ledger is None else ledger.trials():
        own_task = spec.setting_of(trial.point)[1]
        if trial.point >= spec.trial_count or not own_task.items() <= trial.params.items():
            continue
        try:
            tasks = planner.trial(trial.params, trial.number)
        except ValueError:  # the space has changed, and has no such point any more
            continue
        if digests(tasks) == dict(trial.runs) and trial.state != "pruned":
            yield tasks


def _by_task(spec: SweepSpec, settings: Sequence[Sequence[Task]]) -> dict[str, int]:
    """Runs by task: those of known settings, and of trials whose point is still to be drawn."""
    if spec.tasks is None:
        return {}
    counts = Counter({str(task): 0 for task in spec.task_values})
    for number in range(spec.trial_count):
        counts[str(spec.setting_of(number)[1][spec.tasks])] += len(spec.seeds)
    for runs in settings:
        asked = len(spec.seeds) if runs[0].role == "trial" else 0  # counted already
        counts[str(runs[0].params[spec.tasks])] += len(runs) - asked
    return dict(counts)


def _known_confirmations(planner: Planner, home: Home) -> Iterator[list[Task]]:
    """What was chosen when the sweep last ended, as far as its runs would be the same now."""
    ledger = newest_generation(home, planner.spec.name)
    known = () if ledger is None or not planner.spec.confirm_seeds else ledger.confirmations()
    for setting in known:
        try:
            tasks = planner.confirmation(setting.algorithm, setting.params)
        except ValueError:  # the space has changed, and has no such point any more
            continue
        if digests(tasks) == setting.runs:
            yield tasks


def _known_soups(planner: Planner, home: Home, item: After) -> Iterator[list[Task]]:
    """Those that one item of `after` came to when the sweep last ended, as far as they would be the
    same now."""
    ledger = newest_generation(home, planner.spec.name)
    for setting in () if ledger is None else ledger.soups():
        params = dict(setting.params)
        of = RunsOf(algorithm=params.pop("of", ""), settings=params.pop("settings", "selected"))
        if (setting.algorithm, of) != (item.algorithm["name"], item.of):
            continue
        try:
            tasks = planner.soup(item, params, setting.members)
        except ValueError:  # the space has changed, and has no such point any more
            continue
        if digests(tasks) == setting.runs:
            yield tasks


def _usual(
    planner: Planner, settings: Sequence[Sequence[Task]], algorithm: str, count: int
) -> list[Work]:
    """So many runs at the setting of an algorithm that will be chosen, taken to be like another."""
    configs = (tasks[0].config for tasks in settings if tasks[0].algorithm == algorithm)
    config = next(configs, None)
    if config is None:
        return list(_to_come(planner, count))
    return [_whole(config, 1 + len(merge_labels(config)))] * count


def _row(plan: Plan, tasks: Sequence[Task], runs: Runs, seen: set[str]) -> dict[str, Any]:
    states = {"done": 0, "evaluate": 0, "train": 0}
    for task in tasks:
        folder = runs.folder(task.digest)
        twice = task.digest in seen
        seen.add(task.digest)
        if twice or is_complete(folder, task.config):
            states["done"] += 1
            plan.done += 1
            known = runs.read(task.digest)
            plan.reused += twice or (known is not None and known.sweep != plan.sweep)
            continue
        models = 1 + len(merge_labels(task.config))
        if (folder / "trained.json").exists() or not task.config.algorithm.trains:
            states["evaluate"] += 1
            plan.to_evaluate += 1
            plan.work.append(Work(task.config, 0, 0, models))
        else:
            states["train"] += 1
            plan.to_train += 1
            plan.work.append(_left(task.config, runs, task.digest, models))
    name = tasks[0].label if tasks[0].seed is None else tasks[0].label.rsplit(" seed ", 1)[0]
    name += CONFIRMED if tasks[0].role == "confirmation" else ""
    seeds = [task.seed for task in tasks if task.seed is not None]
    return {"label": name, "role": tasks[0].role, "seeds": seeds, **states}


def _left(config: TrialConfig, runs: Runs, digest: str, models: int) -> Work:
    """What an unfinished run has before it: it goes on behind its last epoch."""
    whole = _whole(config, models)
    folder = runs.folder(digest)
    history = read_json(folder / "history.json") or []
    if not history or not (folder / "checkpoint.pt").exists():
        return whole
    last = history[-1]
    return Work(
        config, max(0, whole.steps - last["step"]), max(1, whole.epochs - last["epoch"]), models
    )


def _whole(config: TrialConfig, models: int) -> Work:
    if config.algorithm.solves:
        return Work(config, 1, 1, models)
    schedule = schedule_of(
        config.optim, open_data(config.data).train, balanced=config.data.balanced
    )
    return Work(config, schedule.steps, schedule.epochs, models)


def _to_come(planner: Planner, count: int) -> Iterator[Work]:
    """So many runs at points that are still to be chosen, in the middle of the space."""
    spec = planner.spec
    for number in range(count):
        u = TYPICAL[number % len(TYPICAL)]
        params = assigned(spec.parameters, functools.partial(quantile, u=u))
        config = planner.hardware.resolve(spec.config_for(params).for_seed(spec.seeds[0]))
        models = 1 + len(merge_labels(config))
        yield _whole(config, models) if config.algorithm.trains else Work(config, 0, 0, models)
