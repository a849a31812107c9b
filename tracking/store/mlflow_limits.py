"""Names and values that MLflow accepts, and how all others are made to fit.

The limits are MLflow's (`mlflow/utils/validation.py`), the strictest of the versions supported.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from carft_sweep.tracking.store.base import DatasetInput, Metric

NAME_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
DATASET_NAME_LENGTH = 500
DATASET_DIGEST_LENGTH = 36

Param = str | int | float | bool | None

_ILLEGAL = re.compile(r"[^/\w.\- :]")


def name(text: str) -> str:
    """Return a name that MLflow accepts for a metric, parameter or tag: `gap(id=ood)` becomes
    `gap_id_ood_`.

    Characters other than letters, digits and `_ - . / : space` become `_`; empty and `.` parts of a
    path go, `..` as a part or at the start becomes `__`; a name that is too long is cut and ends in
    a hash of the whole name.
    """
    parts = [part for part in _ILLEGAL.sub("_", text).split("/") if part not in ("", ".")]
    clean = "/".join("__" if part == ".." else part for part in parts) or "_"
    if clean.startswith(".."):  # refused, as if it led out of a folder
        clean = f"__{clean[2:]}"
    if len(clean) <= NAME_LENGTH:
        return clean
    # A name must not end in a slash, and a cut may leave one: the hash follows it then.
    return f"{clean[: NAME_LENGTH - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def param(value: Param) -> str:
    """Return a parameter as text, truncated to 6000 characters; None, True, False as in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return truncate(value if isinstance(value, str) else repr(value), PARAM_LENGTH)


def params(values: Mapping[str, Param]) -> dict[str, str]:
    """Return parameters with names and values that MLflow accepts."""
    return {name(key): param(value) for key, value in values.items()}


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Return tags with names and values that MLflow accepts, of at most 5000 characters."""
    return {name(key): truncate(value, TAG_LENGTH) for key, value in values.items()}


def truncate(text: str, length: int) -> str:
    """Return a text unchanged, or its beginning and an ellipsis if longer than `length`."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def metrics(values: Iterable[Metric]) -> tuple[list[Metric], dict[str, str]]:
    """Return the values that MLflow holds (finite ones, NaN) as metrics, and infinite ones as tags:
    a store of numbers without infinities shows 1.8e308, which spoils charts and maxima."""
    kept: list[Metric] = []
    infinite: dict[str, str] = {}
    for metric in values:
        clean = name(metric.name)
        if math.isinf(metric.value):
            infinite[name(f"carft.not_finite.{clean}")] = f"{metric.value} at step {metric.step}"
        else:
            kept.append(metric._replace(name=clean))
    return kept, infinite


def datasets(values: Iterable[DatasetInput]) -> list[DatasetInput]:
    """Return data sets, one for each name and digest, as a store keeps them; the contexts of equal
    ones are joined by commas."""
    joined: dict[tuple[str, str], DatasetInput] = {}
    for value in values:
        short = replace(
            value,
            name=truncate(value.name, DATASET_NAME_LENGTH),
            digest=value.digest[:DATASET_DIGEST_LENGTH],
        )
        first = joined.setdefault((short.name, short.digest), short)
        if short.context not in first.context.split(","):
            both = f"{first.context},{short.context}"
            joined[short.name, short.digest] = replace(first, context=both)
    return list(joined.values())


def changed(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return a tag for each parameter with a new value: MLflow keeps the logged one, in `old`."""
    return {
        name(f"carft.param_changed.{key}"): truncate(value, TAG_LENGTH)
        for key, value in new.items()
        if key in old and old[key] != value
    }
