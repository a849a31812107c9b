"""From a sweep file to a validated sweep: every mistake is reported at once, with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from carft_core.algorithms import ALGORITHMS
from carft_core.config import TrialConfig
from carft_core.errors import RequestError
from sweeps.checks import checked
from sweeps.dimensions import Dimension, Params, distinct, grid
from sweeps.draft import Draft
from sweeps.points import baseline_at, baseline_params, config_at
from sweeps.recipes import locate
from sweeps.settings import RUN_CAP, Metric, Report, Resources, Selection
from sweeps.shape import apply, normalise
from sweeps.yaml_lines import YamlError, parse, read_text


class BaselinePoint(NamedTuple):
    """One setting of one baseline, to be run with every seed of the sweep."""

    algorithm: str
    params: Params
    """The varied fields that it has; `{}` when it has none."""
    config: TrialConfig
    untuned: bool
    """Its varied fields stay at their defaults, while those of the trials are searched."""


@dataclass(frozen=True)
class SweepSpec:
    """A validated sweep file."""

    name: str
    description: str
    method: Literal["grid", "random", "tpe"]
    metric: Metric
    parameters: tuple[Dimension, ...]
    seeds: tuple[int, ...]
    baselines: tuple[Mapping[str, Any], ...]
    """Each with `name` and the algorithm fields that it fixes."""
    trial: Mapping[str, Any]
    """The shared fields as given, nested."""
    run_cap: int | None
    seed: int
    selection: Selection
    report: Report
    retries: int
    resources: Resources
    text: str
    """The file as read, to be kept beside the results."""
    source_path: Path
    overrides: tuple[str, ...]
    warnings: tuple[str, ...]

    def points(self) -> list[Params]:
        """The trials of a grid in declared order, the first parameter slowest, up to `run_cap`.

        Raises ValueError when the method is not grid.
        """
        if self.method != "grid":
            raise ValueError(f"the points of a {self.method} sweep are not known before it runs")
        return grid(self.parameters)[: self.run_cap]

    @property
    def trial_count(self) -> int:
        """How many trials the sweep has."""
        return len(self.points()) if self.method == "grid" else self.run_cap or RUN_CAP

    def config_for(self, params: Mapping[str, Any]) -> TrialConfig:
        """The trial config at one point (dotted field -> value) of the space."""
        return config_at(self.trial, params)

    def baseline_configs(self) -> list[BaselinePoint]:
        """Every baseline at every point of the grid, projected on the fields that it has.

        With other methods once, at the trial's own fields and defaults (design, section 7).
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
        return {
            "name": self.name,
            "description": self.description,
            "method": self.method,
            "metric": self.metric.model_dump(),
            "parameters": {dimension.name: dimension.plain() for dimension in self.parameters},
            "seeds": list(self.seeds),
            "baselines": [dict(baseline) for baseline in self.baselines],
            "trial": dict(self.trial),
            "run_cap": self.run_cap,
            "seed": self.seed,
            "selection": self.selection.plain(),
            "report": self.report.model_dump(),
            "retries": self.retries,
            "resources": self.resources.model_dump(),
        }

    def _baseline_points(self, baseline: Mapping[str, Any]) -> list[Params]:
        if self.method != "grid":
            return [{}]
        return distinct(baseline_params(baseline, point) for point in self.points())

    def _open(self, baseline: Mapping[str, Any]) -> Params:
        """The varied fields that a baseline has, when it trains at all."""
        if not ALGORITHMS[str(baseline["name"])].trains:
            return {}
        return baseline_params(baseline, {dimension.name: None for dimension in self.parameters})


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read and validate a sweep file, or a shipped recipe by its name.

    `overrides` are `key=value` texts, as `--set` takes them. Raises RequestError when the file
    cannot be read, InvalidConfig with every mistake in it otherwise, in the order of the lines.
    """
    source = locate(path)
    text = read_text(source)
    try:
        document = parse(text)
    except YamlError as error:
        raise RequestError(f"{source.name}:{error.line}: {error.reason}") from None
    draft = Draft(document, source.name)
    normalise(draft)
    apply(draft, overrides)
    parts = checked(draft)
    return SweepSpec(
        **{name: getattr(parts.settings, name) for name in type(parts.settings).model_fields},
        parameters=parts.dimensions,
        baselines=parts.baselines,
        trial=parts.trial,
        text=text,
        source_path=source,
        overrides=tuple(overrides),
        warnings=tuple(draft.warnings),
    )
