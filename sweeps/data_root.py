"""The data root that the environment names, for a sweep file that names none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from carft_core.data import FAMILIES
from carft_core.data.base import DataConfig
from carft_core.data.folders import VARIABLE
from sweeps.draft import Draft


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
