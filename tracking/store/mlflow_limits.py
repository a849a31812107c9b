"""What a tracking store accepts, and how everything else is made to fit before it is told.

The limits are MLflow's (`mlflow/utils/validation.py`), the strictest of the versions supported.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tracking.store.base import DatasetInput, Metric

NAME_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
DATASET_NAME_LENGTH = 500
DATASET_DIGEST_LENGTH = 36

Param = str | int | float | bool | None

_ILLEGAL = re.compile(r"[^/\w.\- :]")


def name(text: str) -> str:
    """A metric, parameter or tag name that is accepted: `gap(id=ood)` becomes `gap_id_ood_`.

    Characters other than letters, digits and `_ - . / : space` become `_`; empty and `.` parts of
    a path go, `..` as a part or at the start becomes `__`; a name that is too long is cut and ends
    in a hash of the whole.
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
    """A parameter as text, cut to 6000 characters; None, True, False as in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(value if isinstance(value, str) else repr(value), PARAM_LENGTH)


def params(values: Mapping[str, Param]) -> dict[str, str]:
    """Names and values that are accepted."""
    return {name(key): param(value) for key, value in values.items()}


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Names and values that are accepted; a value is cut to 5000 characters."""
    return {name(key): cut(value, TAG_LENGTH) for key, value in values.items()}


def cut(text: str, length: int) -> str:
    """The text itself, or its beginning and an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def metrics(values: Iterable[Metric]) -> tuple[list[Metric], dict[str, str]]:
    """The values that are kept, and tags that tell of the infinite ones, which are not.

    A store of numbers without infinities shows 1.8e308 instead, which spoils every chart and
    maximum. NaN is kept: MLflow knows it.
    """
    kept: list[Metric] = []
    told: dict[str, str] = {}
    for metric in values:
        clean = name(metric.name)
        if math.isinf(metric.value):
            told[name(f"carft.not_finite.{clean}")] = f"{metric.value} at step {metric.step}"
        else:
            kept.append(metric._replace(name=clean))
    return kept, told


def datasets(values: Iterable[DatasetInput]) -> list[DatasetInput]:
    """One entry for each name and digest, with its contexts joined by commas: a store has one."""
    found: dict[tuple[str, str], DatasetInput] = {}
    for value in values:
        short = replace(
            value,
            name=cut(value.name, DATASET_NAME_LENGTH),
            digest=value.digest[:DATASET_DIGEST_LENGTH],
        )
        known = found.setdefault((short.name, short.digest), short)
        if short.context not in known.context.split(","):
            joined = replace(known, context=f"{known.context},{short.context}")
            found[short.name, short.digest] = joined
    return list(found.values())


def changed(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Tags for parameters that were told before with another value: the first value stands."""
    return {
        name(f"carft.param_changed.{key}"): cut(value, TAG_LENGTH)
        for key, value in new.items()
        if key in old and old[key] != value
    }
