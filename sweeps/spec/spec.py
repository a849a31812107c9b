"""What a sweep file says, validated."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from carft_core.algorithms import ALGORITHMS
from carft_core.config import TrialConfig
from carft_core.data import FAMILIES
from carft_core.data.base import DataConfig
from carft_core.data.folders import VARIABLE
from carft_core.errors import RequestError
from sweeps.space.distributions import Dimension, Params, distinct, grid, listed
from sweeps.space.points import baseline_at, baseline_params, config_at
from sweeps.spec.document import Draft, YamlError, parse, read_text
from sweeps.spec.normalize import apply, normalise
from sweeps.spec.settings import (
    RUN_CAP,
    WEBHOOK_VARIABLE,
    After,
    EarlyTerminate,
    Method,
    Metric,
    RaceSeeds,
    Report,
    Resources,
    Retries,
    Selection,
    Settings,
    is_masked,
    masked,
)
from sweeps.spec.tasks import cells_of_tasks, values
from sweeps.spec.user_code import import_all, name_all
from sweeps.spec.validate import checked


def from_environment(draft: Draft) -> list[str]:
    """`data.root=...` as an override, where CARFT_DATA is set and every family reads below a root.

    Where one does not, and retention on other families is asked for, it is `eval.retention_root`.
    Nothing where the file, or `--set`, says where the data lie.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return []
    place = json.dumps(str(Path(named).expanduser().absolute()), ensure_ascii=False)
    if all(map(_reads_below_a_root, _families(draft))):
        return [f"data.root={place}"] if _is_open(draft) else []
    return [f"eval.retention_root={place}"] if _lies_elsewhere(draft) else []


def _lies_elsewhere(draft: Draft) -> bool:
    """Whether families of retention want a root that nobody names."""
    asked, root = (draft.get(("trial", "eval", key)) for key in ("retention", "retention_root"))
    return bool(asked) and root is None


def _is_open(draft: Draft) -> bool:
    data = draft.get(("trial", "data"))
    if data is not None and not isinstance(data, Mapping):
        return False  # which is reported when the trial is checked
    varied = draft.get(("parameters", "data.root")) is not None
    return not varied and draft.get(("trial", "data", "root")) is None


def _families(draft: Draft) -> list[object]:
    """Those in play, as given."""
    varied = draft.get(("parameters", "data.family"))
    if isinstance(varied, Mapping):
        values = varied.get("values", [varied.get("value")])
        return values if isinstance(values, list) else [values]
    default = DataConfig.model_fields["family"].default
    return [draft.get(("trial", "data", "family")) or default]


def _reads_below_a_root(name: object) -> bool:
    return isinstance(name, str) and name in FAMILIES and bool(FAMILIES[name].folders)


FOLDER = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """The sweep files that come with the package, by stem."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def locate(given: str | Path) -> Path:
    """The file that `given` names.

    An existing file is itself. Otherwise `NAME`, `NAME.yaml` and `sweeps/NAME.yaml` stand for the
    shipped recipe NAME. Raises RequestError with the nearest name when there is neither.
    """
    path = Path(given)
    try:
        found, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"there can be no sweep file {str(given)[:80]!r}: {error.args[-1]}"
        ) from None
    if is_file:
        return path
    recipe = recipes().get(path.stem)
    bare = path.parent == Path() and path.suffix in ("", ".yaml")
    if recipe and (bare or path == Path("sweeps", f"{path.stem}.yaml")):
        return recipe
    if found:
        return path
    raise RequestError(_missing(path))


def _missing(path: Path) -> str:
    beside = [
        str(item) for pattern in ("*.yaml", "*.yml") for item in sorted(path.parent.glob(pattern))
    ]
    known = [*beside, *recipes()]
    near = difflib.get_close_matches(str(path), known, n=1) or difflib.get_close_matches(
        path.stem, recipes(), n=1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"there is no sweep file {path}{hint} In {path.parent.absolute().name or '/'}/: "
        f"{', '.join(Path(name).name for name in beside[:10]) or 'no .yaml file'}. "
        f"Shipped recipes: {', '.join(recipes()) or 'none'}."
    )


OPTIONS = (
    *("confirm_seeds", "after", "early_terminate", "race_seeds", "try_first", "time_budget"),
    *("timeout", "breaker", "engine", "parallel", "webhook", "imports", "tasks"),
)
"""Settings that plain data has only where they differ from their defaults."""


class BaselinePoint(NamedTuple):
    """One setting of one baseline, to be run with every seed of the sweep."""

    algorithm: str
    params: Params
    """The varied fields that it has; `{}` when it has none."""
    config: TrialConfig
    untuned: bool
    """Its varied fields stay at their defaults, while those of the trials are searched."""

    def is_at(self, algorithm: str, params: Mapping[str, Any]) -> bool:
        """Whether it is this algorithm at this point."""
        return self.algorithm == algorithm and self.params == params


@dataclass(frozen=True)
class SweepSpec:
    """A validated sweep file."""

    name: str
    description: str
    method: Method
    goals: tuple[Metric, ...]
    """One, or several; selection, early termination and tables go by the first."""
    parameters: tuple[Dimension, ...]
    seeds: tuple[int, ...]
    confirm_seeds: tuple[int, ...]
    """Of the runs that confirm what was chosen; none of `seeds`."""
    after: tuple[After, ...]
    """Soups of finished runs."""
    baselines: tuple[Mapping[str, Any], ...]
    """Each with `name` and the algorithm fields that it fixes."""
    trial: Mapping[str, Any]
    """The shared fields as given, nested."""
    run_cap: int | None
    time_budget: float | None
    """Seconds, over all executions."""
    seed: int
    tasks: str | None
    """The parameter whose values are tasks; None: the sweep has no such thing."""
    try_first: tuple[Params, ...]
    """Points, maybe partial, before any that the method proposes."""
    early_terminate: EarlyTerminate | None
    """Its metric is filled in."""
    race_seeds: RaceSeeds | None
    selection: Selection
    report: Report
    retries: Retries
    timeout: float | None
    """Seconds, of one run."""
    breaker: int
    engine: Literal["auto", "local", "ray"]
    parallel: int | None
    resources: Resources
    webhook: str | None = field(repr=False)
    """As given, and so secret; `sweeps.spec.settings.masked` is what may be shown."""
    imports: tuple[str, ...]
    """Modules by name, files by absolute path."""
    text: str
    """The file as read, to be kept beside the results."""
    source_path: Path
    overrides: tuple[str, ...]
    warnings: tuple[str, ...]

    def points(self) -> list[Params]:
        """The trials of a grid in declared order, the first parameter slowest, up to `run_cap`.

        Where there are tasks they come fastest, so that settings are whole one after another.
        Raises ValueError when the method is not grid.
        """
        if self.method != "grid":
            raise ValueError(f"the points of a {self.method} sweep are not known before it runs")
        return [*self._grid_points]

    @functools.cached_property
    def _grid_points(self) -> list[Params]:
        """Cached, since each point of the grid is looked up here by its number."""
        if self.tasks is None:
            return grid(self.parameters)[: self.run_cap]
        settings = grid([item for item in self.parameters if item.name != self.tasks])
        return [{**point, **cell} for point in settings for cell in self.cells][: self.run_cap]

    @property
    def task_values(self) -> tuple[Any, ...]:
        """The tasks; none where the sweep has no such thing."""
        return values(self.parameters, self.tasks)

    @property
    def cells(self) -> tuple[Params, ...]:
        """What every setting runs with: each task; without tasks once, with nothing.

        Leave-one-domain-out has each task once more for every other domain that is left out.
        """
        return cells_of_tasks(self.tasks, self.task_values, self.selection)

    def setting_of(self, trial: int) -> tuple[int, Params]:
        """The number of a trial's setting, and its cell: of C cells n // C and n % C."""
        setting, cell = divmod(trial, len(self.cells))
        return setting, self.cells[cell]

    def goals_at(self, params: Mapping[str, Any]) -> tuple[Metric, ...]:
        """The goals of a trial, where each task has a metric of its own that of its task."""
        if self.tasks is None:
            return self.goals
        return tuple(goal.on(str(params[self.tasks])) for goal in self.goals)

    @property
    def metric(self) -> Metric:
        """The first goal."""
        return self.goals[0]

    @property
    def trial_count(self) -> int:
        """How many trials the sweep has: a setting on a task is one."""
        return len(self.points()) if self.method == "grid" else self.run_cap or RUN_CAP

    @property
    def trained_algorithms(self) -> tuple[str, ...]:
        """Those of the trials and of the baselines that train: for each a setting is chosen."""
        varied = next((item for item in self.parameters if item.name == "algorithm.name"), None)
        own = listed(varied) if varied is not None else None
        names = own or [self.trial["algorithm"]["name"]]
        names = [*names, *(baseline["name"] for baseline in self.baselines)]
        return tuple(name for name in dict.fromkeys(names) if ALGORITHMS[name].trains)

    def config_for(self, params: Mapping[str, Any]) -> TrialConfig:
        """The trial config at one point (dotted field -> value) of the space."""
        return config_at(self.trial, params)

    def baseline_configs(self) -> list[BaselinePoint]:
        """Every baseline at every point of the grid, projected on the fields that it has.

        With other methods once, at the trial's own fields and defaults (design, section 7), on
        every task.
        """
        return [
            BaselinePoint(
                str(baseline["name"]),
                params,
                baseline_at(self.trial, baseline, params),
                self.method != "grid" and bool(self._open(baseline)),
            )
            for baseline in self.baselines
            for params in self._baseline_points(baseline)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The sweep as plain data, however its file wrote it; loads again to an equal sweep."""
        written = {
            "name": self.name,
            "description": self.description,
            "method": self.method,
            "metric": self.metric.plain(),
            "parameters": {dimension.name: dimension.plain() for dimension in self.parameters},
            "seeds": list(self.seeds),
            "baselines": [dict(baseline) for baseline in self.baselines],
            "trial": dict(self.trial),
            "run_cap": self.run_cap,
            "seed": self.seed,
            "selection": self.selection.plain(),
            "report": self.report.plain(),
            "retries": self.retries.plain(),
            "resources": self.resources.plain(),
        }
        if len(self.goals) > 1:
            written["metrics"] = [goal.plain() for goal in self.goals]
        return written | dict(self._options())

    def _options(self) -> Iterator[tuple[str, Any]]:
        """What most files leave out, where it is given; of a webhook only what may be shown."""
        for name in OPTIONS:
            value, known = getattr(self, name), Settings.model_fields[name]
            if value != known.default:
                yield known.alias or name, masked(value) if name == "webhook" else _plain(value)

    def _baseline_points(self, baseline: Mapping[str, Any]) -> list[Params]:
        if self.method != "grid":
            return list(self.cells)
        return distinct(baseline_params(baseline, point) for point in self.points())

    def _open(self, baseline: Mapping[str, Any]) -> Params:
        """The varied fields that a baseline has, when it trains at all."""
        if not ALGORITHMS[str(baseline["name"])].trains:
            return {}
        searched = [item.name for item in self.parameters if item.name != self.tasks]
        return baseline_params(baseline, dict.fromkeys(searched))


def _plain(value: Any) -> Any:
    """An option as plain data, as the sweep file writes it."""
    if isinstance(value, EarlyTerminate):
        return value.plain()
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


_SHARED = tuple(
    name for name in Settings.model_fields if name in {item.name for item in fields(SweepSpec)}
)


def load_spec(
    path: str | Path,
    overrides: Sequence[str] = (),
    imports: Sequence[str] = (),
    *,
    text: str | None = None,
) -> SweepSpec:
    """Read and validate a sweep file, or a shipped recipe by its name.

    `overrides` are `key=value` texts, as `--set` takes them; `imports` are modules beside the
    file's own, as `--import` takes them. Modules are imported before anything is checked, since
    they register algorithms, merges and families. Where CARFT_DATA is the data root it becomes an
    override: workers elsewhere, and a later `resume`, have another environment. `text` is what
    the file held when it was run; then it need not be there any more. Raises RequestError when
    the file cannot be read, InvalidConfig with every mistake in it otherwise, in the order of the
    lines.
    """
    source = locate(path) if text is None else Path(path)
    text = read_text(source) if text is None else text
    try:
        document = parse(text)
    except YamlError as error:
        raise RequestError(f"{source.name}:{error.line}: {error.reason}") from None
    draft = Draft(document, source.name)
    if "name" not in draft.data:
        draft.put(("name",), name_of(source), draft.place(()))
    imported = import_all(draft, source.parent, imports)
    normalise(draft)
    apply(draft, overrides)
    imported = tuple(dict.fromkeys([*imported, *name_all(draft, source.parent)]))
    placed = from_environment(draft)
    apply(draft, placed)
    parts = checked(draft)
    shared = {name: getattr(parts.settings, name) for name in _SHARED}
    shared["webhook"], text = _kept_secret(draft, parts.settings.webhook, text)
    return SweepSpec(
        **{**shared, "imports": imported},
        goals=parts.goals,
        parameters=parts.dimensions,
        baselines=parts.baselines,
        trial=parts.trial,
        text=text,
        source_path=source,
        overrides=(*overrides, *placed),
        warnings=tuple(draft.warnings),
    )


def name_of(file: Path) -> str:
    """Name a sweep after its file: the stem, with what no name may have left out."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-_.")[:100] or "sweep"


def _kept_secret(draft: Draft, webhook: str | None, text: str) -> tuple[str | None, str]:
    """The address to call, and the file's text without it: that is kept, and shown by trackers."""
    if webhook is None or webhook.startswith("env:"):
        return webhook, text
    place = draft.place(("webhook",))
    if is_masked(webhook):
        draft.warnings.append(
            f"{place.text}: of the webhook only its host is kept here; give it again, or set "
            f"{WEBHOOK_VARIABLE}"
        )
        return None, text
    if webhook not in text:
        draft.report(("webhook",), "must be written without escapes, so that it can be hidden")
        draft.check()
    return webhook, text.replace(webhook, masked(webhook))
