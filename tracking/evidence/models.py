"""Every model as a point of ID and OOD accuracy: settings, merges, the front, and distances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tracking.comparison.compare import Comparison, Row, setting_key
from tracking.comparison.spec import Endpoint
from tracking.comparison.statistics import Interval
from tracking.comparison.wise_ft import WISE, ood_at


@dataclass(frozen=True)
class Model:
    """Means over seeds; accuracies are fractions."""

    label: str
    algorithm: str
    merge: str | None
    id: float
    ood: float
    n: int | None = None
    """Finished runs; None for a point of a mean curve."""
    id_ci95: Interval | None = None
    ood_ci95: Interval | None = None
    on_show: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class Distance:
    """How far a model lies above the reference's WiSE-FT curve at equal ID accuracy."""

    label: str
    id: float
    ood: float
    curve: float
    """The curve's OOD accuracy there."""


def models(
    comparison: Comparison, settings: Sequence[Row], on_show: Sequence[Row]
) -> tuple[Model, ...]:
    """Every setting, what stands for its merges, and the points between the ends of the curves."""
    shown = {row.arm.label for row in on_show}
    rows = {row.arm.label: row for row in (*settings, *on_show)}
    found = {
        label: model
        for label, row in rows.items()
        if (model := _of_row(row, comparison.endpoint, on_show=label in shown)) is not None
    }
    algorithms = {row.arm.label: row.arm.algorithm for row in comparison.rows}
    for curve in comparison.curves:
        for alpha, x, y in curve.points:
            merge = f"{WISE}@{alpha:g}"
            label = f"{curve.label} + {merge}"
            if 0 < alpha < 1 and label not in found:
                found[label] = Model(label, algorithms[curve.label], merge, x, y)
    best = front((model.id, model.ood) for model in found.values())
    return tuple(replace(model, on_front=(model.id, model.ood) in best) for model in found.values())


def front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """The points that no other one reaches on both and beats on one."""
    kept: set[tuple[float, float]] = set()
    highest = float("-inf")
    for x, y in sorted(set(points), reverse=True):
        if y > highest:
            kept.add((x, y))
            highest = y
    return kept


def distances(
    comparison: Comparison, reference: Row | None, on_show: Sequence[Row]
) -> tuple[Distance, ...]:
    """Of every trained row on show that is not the reference's own, inside the curve's ID range."""
    if reference is None:
        return ()
    key = setting_key(reference)
    own = {row.arm.label for row in on_show if setting_key(row) == key}
    curve = next((curve for curve in comparison.curves if curve.label in own), None)
    if curve is None:
        return ()
    found = []
    for row in on_show:
        model = _of_row(row, comparison.endpoint, on_show=True)
        if model is None or row.arm.is_zero_shot or row.arm.label in own:
            continue
        height = ood_at(curve, model.id)
        if height is not None:
            found.append(Distance(model.label, model.id, model.ood, height))
    return tuple(found)


def _of_row(row: Row, terms: Endpoint, *, on_show: bool) -> Model | None:
    x, y, arm = row.metric(terms.id_metric), row.metric(terms.ood), row.arm
    if x.mean is None or y.mean is None:
        return None
    known = (arm.label, arm.algorithm, arm.merge, x.mean, y.mean, row.n)
    return Model(*known, x.ci95, y.ci95, on_show)
