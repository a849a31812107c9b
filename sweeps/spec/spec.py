"""A validated sweep file, and how one is loaded."""

from __future__ import annotations

import functools
import json
import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.folders import DATA_ROOT_ENV
from carft_sweep.carft_core.errors import RequestError, Route, misspelt, unknown
from carft_sweep.sweeps.space.distributions import Categorical, Distribution, Params, canonical
from carft_sweep.sweeps.space.points import (
    baseline_at,
    baseline_fields,
    baseline_params,
    config_at,
    draw_point,
    grid,
    grid_size,
    hashed,
    sample_point,
    sobol,
)
from carft_sweep.sweeps.spec.document import (
    COMMAND_LINE,
    Place,
    SpecDocument,
    name_of,
    parse,
    read_text,
)
from carft_sweep.sweeps.spec.normalize import normalize
from carft_sweep.sweeps.spec.paths import place_paths
from carft_sweep.sweeps.spec.settings import ADAPTIVE, RUN_CAP, Metric, Settings
from carft_sweep.sweeps.spec.user_code import Vet, import_all, name_families, refuse_family_file
from carft_sweep.sweeps.spec.validate import validate

logger = logging.getLogger(__name__)


def place_data(document: SpecDocument) -> tuple[str, ...]:
    """Set `data.root` to CARFT_DATA where all families of the sweep read a root; otherwise set
    `eval.retention_root`, if retention on other families is measured. Return the new value as an
    override, `key=value`. Do nothing if the file or `--set` sets the field."""
    root = os.environ.get(DATA_ROOT_ENV)
    field = _root_field(document) if root else None
    if root is None or field is None:
        return ()
    path = str(Path(root).expanduser().absolute())
    override = f"{field}={json.dumps(path, ensure_ascii=False)}"
    document.set(("trial", *field.split(".")), path, Place(COMMAND_LINE, f"--set {override}"))
    return (override,)


def _root_field(document: SpecDocument) -> str | None:
    """Return the field that CARFT_DATA sets; None where the sweep sets it, or reads no root."""
    default = DataConfig.model_fields["family"].default
    names = [name or default for name in document.field_values("data.family")]
    if all(isinstance(name, str) and name in FAMILIES and FAMILIES[name].folders for name in names):
        data = document.get(("trial", "data"))
        if data is not None and not isinstance(data, Mapping):
            return None  # which is reported when the trial is checked
        varied = document.get(("parameters", "data.root"))
        fixed = document.get(("trial", "data", "root"))
        return "data.root" if varied is None and fixed is None else None
    retention = document.get(("trial", "eval", "retention"))
    own = document.get(("trial", "eval", "retention_root"))
    return "eval.retention_root" if retention and own is None else None


BestOf = Callable[[str, int], Sequence[Mapping[str, Any]]]
"""Returns the best points of the sweep of this name, at most so many; raises RequestError."""
BEST = 5
"""How many points `try_first: {from: SWEEP}` takes unless it says `best`."""


def place_points(document: SpecDocument, best_of: BestOf | None) -> tuple[str, ...]:
    """Replace `try_first: {from: SWEEP, best: 5}` by the best points that SWEEP has now, and return
    them as overrides, `key=value`: `resume` takes the same points. Without `best_of`, where the
    home is on another machine, no points are tried first."""
    route: Route = ("try_first",)
    wanted, place = document.get(route), document.place(route)
    if not isinstance(wanted, Mapping):
        return ()
    names = {item for item in document.mapping(("parameters",)) if item != document.get(("tasks",))}
    source, count = wanted.get("from"), wanted.get("best", BEST)
    is_count = type(count) is int and count > 0
    if wanted.keys() - {"from", "best"} or not isinstance(source, str) or not is_count:
        form = f"{{from: SWEEP, best: {BEST}}}, of at least one"
        document.add_error(route, f"must be a list of points, or {form}")
    elif source == document.get(("name",)):
        document.add_error(route, f"from: {source} is this sweep; name another")
    document.remove(route)
    if best_of is not None and isinstance(source, str) and not document.is_wrong(route):
        try:
            best = best_of(source, count)
        except RequestError as error:
            document.add_errors(Place(place.order, f"{place.text}: try_first"), error)
            return ()
        points = [{name: point[name] for name in point if name in names} for point in best]
        document.set(route, points, place)
        document.set(("try_first_from",), source, place)
        text = json.dumps(document.get(route), ensure_ascii=False)
        return f"try_first={text}", f"try_first_from={json.dumps(source)}"
    return ()


FOLDER = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """Return the sweep files that come with the package, by stem."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def is_recipe(path: Path) -> bool:
    """Return whether a sweep file comes with the package, which is known by its stem."""
    return path.parent == FOLDER


def locate(name: str | Path) -> Path:
    """Return the sweep file of a path or a recipe's name. An existing path is returned unchanged.
    Otherwise `NAME`, `NAME.yaml` and `sweeps/NAME.yaml` mean the shipped recipe NAME. Raises
    RequestError with the nearest name when neither exists."""
    path = Path(name)
    try:
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        shown = repr(str(name)[:80])
        raise RequestError(f"there can be no sweep file {shown}: {error.args[-1]}") from None
    if is_file:
        return path
    recipe = recipes().get(path.stem)
    bare = path.parent == Path() and path.suffix in ("", ".yaml")
    if recipe and (bare or path == Path("sweeps", f"{path.stem}.yaml")):
        return recipe
    if exists:
        return path
    beside = [str(item) for item in sorted(path.parent.glob("*.y*ml"))]
    near = misspelt(str(path), [*beside, *recipes()])
    allowed = recipes() if near is None else [near]
    raise RequestError(unknown("sweep file", str(path), allowed, " Or the path of a file."))


def name_in_file(path: Path) -> str:
    """Return the name of the sweep that a sweep file or a recipe describes: its `name`, else the
    name for its file. Raises RequestError for a file that is missing or unreadable."""
    source = locate(path)
    data = parse(read_text(source)).data
    name = data.get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) else name_of(source)


SEEDING = ("algorithm.name", "data.family", "data.split_seed")
"""The fields that decide whether a run has a seed."""
ALWAYS = (
    *("name", "description", "method", "metric", "parameters", "seeds", "baselines", "trial"),
    *("run_cap", "seed", "selection", "report", "retries", "resources"),
)
"""Keys that `SweepSpec.as_dict` always has; the others only where they differ from the default."""


class BaselinePoint(NamedTuple):
    """One setting of one baseline, to be run with every seed of the sweep."""

    algorithm: str
    params: Params
    """The varied fields that the baseline has, and the fixed ones in which it differs from another
    baseline of the same algorithm; `{}` when it has none."""
    config: TrialConfig
    number: int | None
    """The number of the first trial with these values; None where none is known to have them."""
    untuned: bool
    """Whether its varied fields stay at their defaults, while those of the trials are searched."""

    def is_at(self, algorithm: str, params: Mapping[str, Any]) -> bool:
        """Return whether the baseline is of `algorithm`, and `params` are its varied fields."""
        return self.algorithm == algorithm and self.params == params


class SweepSpec(Settings):
    """A validated sweep file: its settings, what varies, and where it came from."""

    parameters: tuple[Distribution, ...]
    baselines: tuple[Mapping[str, Any], ...]
    """Each with `name` and the fields that it fixes, of the algorithm and dotted of `optim`."""
    trial: Mapping[str, Any]
    """The fields that all trials share, nested, as the file gives them."""
    text: str = Field(repr=False)
    """The file as read, to be kept beside the results."""
    source_path: Path
    overrides: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_adaptive(self) -> bool:
        """Whether proposals depend on how earlier trials end."""
        return self.method in ADAPTIVE

    def points(self) -> list[Params]:
        """Return the trials of a method that does not learn from results, up to `run_cap`.

        A grid is in declared order, the first parameter slowest. Tasks vary fastest, so that
        settings are complete one after another. Raises ValueError for other methods.
        """
        if self.method == "grid":
            return self._grid[: self.run_cap]
        return [self.point(number) for number in range(self.trial_count)]

    def point(self, number: int) -> Params:
        """Return the point of a number from 0, which alone decides on the point. The first points
        of a search are those of `try_first`; fields that they leave out are drawn. A setting that
        runs on several tasks is drawn once for all of them."""
        match self.method:
            case "grid":
                return self._grid[number]
            case "random":
                setting, cell = self.setting_of(number)
                draw = functools.partial(hashed, self.seed, setting)
                return draw_point(self.parameters, draw, self.fixed_values(number)) | cell
            case "qmc":
                numbers = sobol(self.seed, number, [item.name for item in self.parameters])
                return draw_point(self.parameters, numbers.__getitem__, self.fixed_values(number))
            case adaptive:
                raise ValueError(f"the points of a {adaptive} sweep are not known before it runs")

    def fixed_values(self, number: int) -> Params:
        """Return the values of a point that are not searched: those of `try_first`, and the task.
        `number` is the point's, from 0."""
        setting, cell = self.setting_of(number)
        return {**(self.try_first[setting] if setting < len(self.try_first) else {}), **cell}

    @functools.cached_property
    def _grid(self) -> list[Params]:
        """The whole grid, expanded once, since each point is looked up by its number."""
        if self.tasks is None:
            return grid(self.parameters)
        settings = grid([item for item in self.parameters if item.name != self.tasks])
        return [{**point, **cell} for point in settings for cell in self.cells]

    @property
    def task_values(self) -> tuple[Any, ...]:
        """The values of the parameter that `tasks` names; empty without `tasks`."""
        varied = next((item for item in self.parameters if item.name == self.tasks), None)
        return varied.values if isinstance(varied, Categorical) else ()

    @property
    def cells(self) -> tuple[Params, ...]:
        """The task's part of a point, {parameter: task}, for each task; ({},) without tasks."""
        if self.tasks is None:
            return ({},)
        return tuple({self.tasks: task} for task in self.task_values)

    def setting_of(self, trial: int) -> tuple[int, Params]:
        """Return the number of a trial's setting, and the trial's cell (`cells`). With C tasks,
        trial n has setting n // C and cell n % C."""
        setting, cell = divmod(trial, len(self.cells))
        return setting, self.cells[cell]

    def goals_at(self, params: Mapping[str, Any]) -> tuple[Metric, ...]:
        """Return the goals of the trial at `params`, with `{task}` replaced by the trial's task."""
        if self.tasks is None:
            return self.goals
        return tuple(goal.on(str(params[self.tasks])) for goal in self.goals)

    @property
    def trial_count(self) -> int:
        """Number of trials of the sweep; a setting on one task is a trial."""
        return len(self.points()) if self.method == "grid" else self.run_cap or RUN_CAP

    @functools.cached_property
    def distinct_trials(self) -> int:
        """The number of trials with a point of their own; further trials repeat a point. The number
        is less than that of all trials only in a search of a space with fewer points."""
        if self.method == "grid":
            return self.trial_count
        settings = [item for item in self.parameters if item.name != self.tasks]
        if any(item.grid_values() is None for item in settings):
            return self.trial_count
        points = grid_size(settings, self.trial_count) * len(self.cells)
        return min(points, self.trial_count)

    @functools.cached_property
    def runs_per_trial(self) -> int:
        """Maximal number of runs of a trial: one where nothing trains, whatever the seeds are."""
        if any(item.name in SEEDING for item in self.parameters):
            return len(self.seeds)
        return self._runs_of(self.typical_config())

    def expected_runs(self, number: int) -> int:
        """Return the maximal number of runs of trial `number`; 0 where it repeats another trial."""
        if number >= self.distinct_trials:
            return 0
        if self.is_adaptive or not any(item.name in SEEDING for item in self.parameters):
            return self.runs_per_trial
        return self._runs_of(self.config_for(self.point(number)))

    def _runs_of(self, config: TrialConfig) -> int:
        return len(self.seeds) if config.algorithm.trains or config.follows_seed else 1

    @property
    def most_at_once(self) -> int | None:
        """Maximal number of runs at once; None where the machines alone decide."""
        return None if self.parallel == "auto" else self.parallel

    @property
    def trained_algorithms(self) -> tuple[str, ...]:
        """Algorithms of trials and baselines that train; a setting is chosen for each."""
        varied = next((item for item in self.parameters if item.name == "algorithm.name"), None)
        fixed = self.trial.get("algorithm", {}).get("name")
        own = varied.values if isinstance(varied, Categorical) else [fixed]
        names = [*own, *(baseline["name"] for baseline in self.baselines)]
        return tuple(name for name in dict.fromkeys(names) if ALGORITHMS[name].trains)

    def config_for(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the trial config at one point (dotted field -> value) of the space."""
        return config_at(self.trial, params)

    def typical_config(self) -> TrialConfig:
        """Return the config of a trial in the middle of the space, with the first seed."""
        point = sample_point(self.parameters, operator.methodcaller("quantile", 0.5))
        return self.config_for(point).for_seed(self.seeds[0])

    def baseline_configs(self) -> list[BaselinePoint]:
        """Return every baseline at every point of the sweep, with the fields that the baseline has.
        With an adaptive method, whose points are not known in advance, each baseline is made once
        for each task, at the trial's own fields and defaults."""
        return [
            BaselinePoint(
                str(baseline["name"]),
                params,
                baseline_at(self.trial, baseline, params),
                number,
                self.is_adaptive and bool(self._open(baseline)),
            )
            for baseline in self.baselines
            for params, number in self._baseline_points(baseline)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the sweep as plain data for JSON, however its file wrote it. Loading that data
        gives an equal sweep. Keys at their defaults are left out, so that a later version with more
        keys gives the same data."""
        own = {"text", "source_path", "overrides", "warnings", "parameters"}
        own |= {"metric"} if self.metrics else set()
        whole = self.model_dump(mode="json", by_alias=True, exclude=own)
        changed = self.model_dump(by_alias=True, exclude=own, exclude_defaults=True)
        plain = {key: value for key, value in whole.items() if key in ALWAYS or key in changed}
        plain |= {"parameters": {item.name: item.to_dict() for item in self.parameters}}
        return dict(json.loads(json.dumps(plain)))  # of lists, without a tuple

    def _baseline_points(self, baseline: Mapping[str, Any]) -> list[tuple[Params, int | None]]:
        """Return a baseline's distinct points, each with the number of the first trial at it: None
        in a search, whose trials are not known, and with fields that no trial has."""
        alike = [baseline_fields(b) for b in self.baselines if b["name"] == baseline["name"]]
        fields = baseline_fields(baseline)
        values = {name: {canonical(other.get(name)) for other in alike} for name in fields}
        own = {name: fields[name] for name in fields if len(values[name]) > 1}
        if self.is_adaptive:
            return [(own | cell, None) for cell in self.cells]
        first: dict[str, tuple[Params, int | None]] = {}
        for number, point in enumerate(self.points()):
            params = own | baseline_params(baseline, point)
            entry = (params, None if own else number)
            first.setdefault(json.dumps(params, sort_keys=True), entry)
        return [*first.values()]

    def _open(self, baseline: Mapping[str, Any]) -> Params:
        """Return the varied fields, as keys, that a baseline has and does not fix; `{}` if it does
        not train."""
        if not ALGORITHMS[str(baseline["name"])].trains:
            return {}
        searched = [item.name for item in self.parameters if item.name != self.tasks]
        return baseline_params(baseline, dict.fromkeys(searched))


def load_spec(
    path: str | Path,
    overrides: Sequence[str] = (),
    imports: Sequence[str] = (),
    *,
    text: str | None = None,
    vet: Vet | None = None,
    best_of: BestOf | None = None,
) -> SweepSpec:
    """Return the validated sweep of a file, or of a shipped recipe by its name.

    `overrides` are `key=value` texts, as `--set` takes them; `imports` are modules besides the
    file's own, as `--import` takes them. Modules are imported before anything is checked, since
    they register algorithms, merges and families. A data root from CARFT_DATA becomes an override:
    workers elsewhere, and a later `resume`, have another environment. `text` is the content of the
    file when it was run; the file itself may be missing then. `vet` is called with each module
    before it is imported, where a home names the module and not the user. `best_of` finds the
    points of other sweeps for `try_first`. Raises RequestError when the file cannot be read,
    otherwise InvalidConfig with every mistake in the order of the lines.
    """
    source = locate(path) if text is None else Path(path)
    text = read_text(source) if text is None else text
    document = SpecDocument(text, source.name)
    refuse_family_file(document, source)
    document.data.setdefault("name", name_of(source))
    imported = import_all(document, source.parent, imports, vet)
    normalize(document, overrides)
    place_paths(document, source.parent)
    imported = tuple(dict.fromkeys([*imported, *name_families(document, source.parent)]))
    placed = (*place_data(document), *place_points(document, best_of))
    fields = validate(document) | {"imports": imported}
    logger.debug("%s: read %s", source, fields["name"])
    return SweepSpec.model_construct(
        **fields,
        text=text,
        source_path=source,
        overrides=(*overrides, *placed),
        warnings=document.warnings,
    )
