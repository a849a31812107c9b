"""What is left of a sweep, and how long it takes by earlier runs of the home."""

from __future__ import annotations

import functools
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.models.source import find_model
from carft_sweep.carft_core.runs.evaluations import is_complete
from carft_sweep.carft_core.runs.result import Claim, Trained
from carft_sweep.carft_core.training.optim import schedule_of
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import changes, effect, in_kept_order, taken_name
from carft_sweep.sweeps.ledger.ledger import Ledger, newest_generation
from carft_sweep.sweeps.ledger.runs import RunStore, history, measured
from carft_sweep.sweeps.plan.planner import PlannedRun, Planner, digests, merge_labels, run_label
from carft_sweep.sweeps.plan.prospects import Obstacle, obstacles_of, power_of
from carft_sweep.sweeps.spec.settings import After, RunsOf
from carft_sweep.sweeps.spec.spec import SweepSpec
from carft_sweep.tracking.comparison.runs import CONFIRMED, UNMERGED
from carft_sweep.tracking.report import published_zero_shot

MOST = 200
"""Runs of a home that are read, the newest."""
logger = logging.getLogger(__name__)


class RunTimes(NamedTuple):
    """How many seconds each part of a run takes."""

    step: float
    epoch: float
    """After each epoch: the validation and the checkpoint."""
    model: float
    """For each model, the run's own and each merged one: its evaluation on every split."""


@dataclass(frozen=True)
class TimedRun:
    """One run of the home that was trained to its end."""

    config: Mapping[str, Any]
    times: RunTimes


def times_of(config: TrialConfig, earlier: Sequence[TimedRun]) -> RunTimes | None:
    """Return the median times of the earlier runs most like `config`; None without any."""
    likeness = _likeness(config.as_dict())
    alike = [run for run in earlier if _likeness(run.config) == likeness]
    same = [run for run in alike if run.config["algorithm"]["name"] == config.algorithm.name]
    # Medians: a run that slept for a night counts no more than another.
    parts = zip(*(run.times for run in same or alike), strict=True)
    return RunTimes(*map(statistics.median, parts)) if alike else None


def _likeness(config: Mapping[str, Any]) -> object:
    """Return the values of the fields that decide the time of a step: equal ones for alike runs."""
    data, optim = config["data"], config["optim"]
    device = config["device"].partition(":")[0]
    batch = optim["batch_size"], optim["micro_batch"]
    return config["model"], data["family"], data.get("balanced"), batch, device


def timed_runs(runs: RunStore) -> list[TimedRun]:
    """Return the newest runs of a home that were trained to their end, with their times."""
    trained = sorted(runs.path.glob("*/trained.json"), key=lambda file: -file.stat().st_mtime)
    timed = [run for file in trained[:MOST] for run in _timed(runs, file.parent)]
    logger.debug("%d earlier runs of %s", len(timed), runs.path)
    return timed


def _timed(runs: RunStore, folder: Path) -> Iterator[TimedRun]:
    known, state = read_json(folder / "config.json", Claim), runs.read(folder.name)
    epochs = history(folder)
    steps, waits = [], []
    for before, after in itertools.pairwise(epochs):
        count = after["step"] - before["step"]
        if count > 0:
            steps.append(after["seconds"] / count)
            span = (after["timestamp"] - before["timestamp"]) / 1000
            waits.append(max(0.0, span - after["seconds"]))
    if known is None or not steps:
        return
    ended = (read_json(folder / "trained.json", Trained) or {}).get("ended")
    end = state.ended - ended if state is not None and state.ended and ended else 0.0
    models = max(1, len([*folder.glob("evaluations/*/metrics.json")]))
    step, epoch = statistics.median(steps), statistics.median(waits)
    yield TimedRun(known["config"], RunTimes(step, epoch, max(0.0, end) / models))


@dataclass(frozen=True)
class RemainingWork:
    """What is left to do of a run."""

    config: TrialConfig
    steps: int
    epochs: int
    models: int


@dataclass
class SweepEstimate:
    """What a sweep would do now. Times in seconds."""

    sweep: str
    method: str
    trials: int
    runs: int
    points: int | None = None
    """The number of distinct points, where the trials are more."""
    done: int = 0
    reused: int = 0
    """Those of `done` that another sweep trained, or that equal an earlier run of this sweep."""
    to_evaluate: int = 0
    to_train: int = 0
    unknown: int = 0
    """Runs whose point a sampler has yet to choose."""
    to_confirm: int = 0
    """Runs on fresh seeds of settings that are still to be chosen."""
    to_combine: int = 0
    """Soups of runs that are still to be chosen."""
    epochs: int = 0
    """Epochs to be trained; those of unknown runs are taken as at a typical point."""
    seconds: float | None = None
    """The time of `work`, run after run; None where some run is like no earlier one."""
    disk_bytes: int = 0
    """The most that the runs to be trained will keep, by the size of the models' weights."""
    at_once: int = 1
    """Runs side by side."""
    published_zero_shot: tuple[str, ...] = ()
    """How the zero-shot models differ from LAION's table, or what to expect of them: sentences."""
    at_most: bool = False
    """Whether the sweep may well need less: it stops trials early, or when a target is reached,
    or need not try every point of its space."""
    warnings: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    work: list[RemainingWork] = field(default_factory=list)
    of_a_seed: list[RemainingWork] = field(default_factory=list)
    """The work of one more seed of every setting that trains."""
    seconds_of_a_run: float | None = None
    """The mean time of a run of `of_a_seed`; None where it is unknown."""
    obstacles: tuple[Obstacle, ...] = ()
    """What prevents a verdict."""
    power: str = ""
    """A sentence on the difference that the verdict can show (`power_of`)."""

    @property
    def wall_seconds(self) -> float | None:
        """The expected wall-clock time of the whole sweep; None where unknown."""
        return None if self.seconds is None else self.seconds / self.at_once

    def add_times(self, earlier: Sequence[TimedRun]) -> None:
        """Add the expected times, provided that every run resembles an earlier run."""
        self.seconds = _seconds(self.work, earlier)
        seconds = _seconds(self.of_a_seed, earlier)
        if seconds is not None and self.of_a_seed:
            self.seconds_of_a_run = seconds / len(self.of_a_seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        own = ("work", "of_a_seed", "obstacles")
        plain = {key: value for key, value in vars(self).items() if key not in own}
        return {**plain, "wall_seconds": self.wall_seconds}


@functools.cache
def _model_bytes(name: str, pretrained: str | None) -> int:
    """Return the bytes of a whole CLIP's weights; a run stores its image tower alone."""
    return find_model(name, pretrained).weights.stat().st_size


def _seconds(every: Sequence[RemainingWork], earlier: Sequence[TimedRun]) -> float | None:
    """Return the sum of expected times; None where a run resembles no earlier run."""
    seconds = 0.0
    for work in every:
        times = times_of(work.config, earlier)
        if times is None:
            return None
        seconds += times.step * work.steps + times.epoch * work.epochs + times.model * work.models
    return round(seconds, 1)


def estimate_sweep(spec: SweepSpec, home: Home, hardware: Hardware) -> SweepEstimate:
    """Return the estimate of a sweep, from the planned runs and those that the home has. `hardware`
    is the hardware that a run gets."""
    notes: list[str] = []
    ledger = newest_generation(home, spec.name)
    spec = in_kept_order(spec, ledger)
    planner = Planner(spec, hardware, notes.append)
    taken = taken_name(spec, ledger)
    trials = dict(_known_trials(planner, ledger))
    planned_trials = [planned for planned in trials.values() if planned]
    settings = [*planner.baselines(), *planned_trials]
    trained = [planned for planned in settings if planned[0].config.algorithm.trains]
    numbers = (number for number in range(spec.trial_count) if number not in trials)
    to_come = [*itertools.islice(numbers, max(0, spec.distinct_trials - len(planned_trials)))]
    unknown = spec.runs_per_trial * len(to_come)
    fresh = list(_known_confirmations(planner, ledger))
    confirmed = {planned[0].algorithm for planned in fresh}
    to_confirm = [name for name in spec.trained_algorithms if name not in confirmed]
    confirming = [work for name in to_confirm for work in _typical_runs(planner, settings, name)]
    soups = [
        (item, planned) for item in spec.after for planned in _known_soups(planner, ledger, item)
    ]
    to_combine = sum(item not in [soup for soup, _ in soups] for item in spec.after)
    settings += [*fresh, *(planned for _, planned in soups)]
    estimate = SweepEstimate(
        spec.name,
        spec.method,
        spec.trial_count,
        sum(map(len, settings)) + unknown + len(confirming) + to_combine,
        spec.distinct_trials if spec.distinct_trials < spec.trial_count else None,
        unknown=unknown,
        to_confirm=len(confirming),
        to_combine=to_combine,
        at_most=bool(spec.early_terminate or spec.race_seeds or spec.metric.target is not None)
        or spec.distinct_trials < spec.trial_count,
        warnings=(*spec.warnings, *notes, *([] if taken is None else [taken])),
    )
    runs, seen = RunStore(home.runs), set[str]()
    for planned in settings:
        estimate.rows.append(_row(estimate, planned, runs, seen))
    deviations = dict.fromkeys(
        note
        for planned in settings
        for run in planned
        if run.config.algorithm.starts_at_zero_shot and not run.config.algorithm.trains
        for note in _deviations(run, runs)
    )
    estimate.published_zero_shot = published_zero_shot.sentences(deviations)
    estimate.warnings += published_zero_shot.warnings(deviations)
    estimate.done, estimate.to_evaluate, estimate.to_train = (
        sum(row[state] for row in estimate.rows) for state in ("done", "evaluate", "train")
    )
    estimate.work += [*_to_come(planner, unknown), *confirming]
    estimate.of_a_seed += [_work(planned[0].config) for planned in trained]
    estimate.of_a_seed += _to_come(planner, len(to_come))
    estimate.obstacles = obstacles_of(planner)
    estimate.power = "" if estimate.obstacles else power_of(planner)
    estimate.epochs = sum(work.epochs for work in estimate.work)
    stored = (work.config for work in estimate.work if work.epochs and work.config.keep.weights)
    estimate.disk_bytes = sum(
        config.algorithm.copies * _model_bytes(config.model.name, config.model.pretrained)
        for config in stored
    )
    return estimate


def _known_trials(
    planner: Planner, ledger: Ledger | None
) -> Iterator[tuple[int, list[PlannedRun]]]:
    """Yield (number, runs) of every point of a grid, else of the proposed points whose runs would
    be the same now. Runs are [] for a pruned point, or if an earlier point has the same runs."""
    spec, seen = planner.spec, set[frozenset[str]]()
    outcome = None if ledger is None else effect(changes(ledger.spec, spec.as_dict()))
    trials = {} if ledger is None else {trial.point: trial for trial in ledger.trials()}
    numbers = range(spec.trial_count) if spec.method == "grid" else [*trials]
    for number in numbers:
        trial = trials.get(number) if outcome in (None, "extend") else None
        if number >= spec.trial_count or (spec.is_adaptive and outcome == "restart"):
            continue
        params = trials[number].params if spec.is_adaptive else spec.point(number)
        planned = planner.trial(params, number)
        runs = frozenset(digests(planned).values())
        if spec.is_adaptive and trial is not None and runs != {*trial.runs.values()}:
            continue  # code, model or data changed: the sweep begins anew
        is_pruned = trial is not None and trial.state == "pruned"
        yield number, [] if is_pruned or runs in seen else planned
        seen.add(runs)


def _unchanged(
    runs: Mapping[str, str], plan: Callable[[], list[PlannedRun]]
) -> Iterator[list[PlannedRun]]:
    """Yield what `plan` returns, if the digests are `runs`, those in the ledger by seed."""
    try:
        planned = plan()
    except ValueError:  # the space has changed, and has no such point any more
        return
    if digests(planned) == dict(runs):
        yield planned


def _known_confirmations(planner: Planner, ledger: Ledger | None) -> Iterator[list[PlannedRun]]:
    """Yield the runs of each confirmation that the ledger has, if they would be the same now."""
    if ledger is not None and planner.spec.confirm_seeds:
        for arm in ledger.confirmations():
            plan = partial(planner.confirmation, arm.algorithm, arm.params)
            yield from _unchanged(arm.runs, plan)


def _known_soups(
    planner: Planner, ledger: Ledger | None, item: After
) -> Iterator[list[PlannedRun]]:
    """Yield the runs that an item of `after` had at the sweep's last end, if still the same."""
    for setting in () if ledger is None else ledger.soups():
        params = dict(setting.params)
        of = RunsOf(algorithm=params.pop("of", ""), settings=params.pop("settings", "selected"))
        if (setting.algorithm, of) == (item.algorithm["name"], item.of):
            plan = partial(planner.soup, item, params, setting.members)
            yield from _unchanged(setting.runs, plan)


def _typical_runs(
    planner: Planner, settings: Sequence[Sequence[PlannedRun]], algorithm: str
) -> list[RemainingWork]:
    """Return the work of confirming a setting of `algorithm` that is not chosen yet, as that of the
    algorithm's first setting in `settings`."""
    configs = (planned[0].config for planned in settings if planned[0].algorithm == algorithm)
    config, count = next(configs, None), len(planner.spec.confirm_seeds)
    return _to_come(planner, count) if config is None else [_work(config)] * count


def _row(
    estimate: SweepEstimate, planned: Sequence[PlannedRun], runs: RunStore, seen: set[str]
) -> dict[str, Any]:
    states = {"done": 0, "evaluate": 0, "train": 0}
    for run in planned:
        folder = runs.folder(run.digest)
        twice = run.digest in seen
        seen.add(run.digest)
        if twice or is_complete(folder, run.config):
            states["done"] += 1
            state = runs.read(run.digest)
            estimate.reused += twice or (state is not None and state.sweep != estimate.sweep)
            continue
        work = _work(run.config, folder)
        states["train" if work.epochs else "evaluate"] += 1
        estimate.work.append(work)
    first = planned[0]
    label = run_label(first.algorithm, first.params)
    label += CONFIRMED if first.role == "confirmation" else ""
    seeds = [run.seed for run in planned if run.seed is not None]
    return {"label": label, "role": first.role, "seeds": seeds, **states}


def _deviations(run: PlannedRun, runs: RunStore) -> Iterator[published_zero_shot.Deviation]:
    """Yield the differences of a zero-shot run from LAION's table, or what to expect of it."""
    config, own = run.config, measured(runs.folder(run.digest), UNMERGED)
    fields = {
        "model.name": config.model.name,
        "model.pretrained": config.model.pretrained,
        "data.family": config.data.family,
        "prompts.classes": config.prompts.classes,
    }
    if own:
        counts = own["facts"].get("images", {})
        return published_zero_shot.deviations(fields, counts, own["metrics"])
    splits = open_data(config.data).measured()
    images = {name: len(split) for name, split in splits.items()}
    return published_zero_shot.deviations(fields, images, metrics=None)


def _work(config: TrialConfig, folder: Path | None = None) -> RemainingWork:
    """Return the work left for a run: without `folder` all of it, else after its last epoch."""
    models = 1 + len(merge_labels(config))
    if not config.algorithm.trains or (folder and (folder / "trained.json").exists()):
        return RemainingWork(config, 0, 0, models)
    steps = epochs = 1
    if not config.algorithm.solves:
        data, optim = config.data, config.optim
        schedule = schedule_of(optim, open_data(data).train, balanced=data.balanced)
        steps, epochs = schedule.steps, schedule.epochs
    if folder and (folder / "checkpoint.pt").exists():
        for last in history(folder)[-1:]:
            steps, epochs = max(0, steps - last["step"]), max(1, epochs - last["epoch"])
    return RemainingWork(config, steps, epochs, models)


def _to_come(planner: Planner, count: int) -> list[RemainingWork]:
    """Return the work of `count` runs at points not chosen yet, as in the middle of the space."""
    if not count:
        return []
    return [_work(planner.hardware.resolve(planner.spec.typical_config()))] * count
