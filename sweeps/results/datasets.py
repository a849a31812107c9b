"""The data of runs as a tracking store has them: an entry for each split that they read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.runs.result import Claim
from carft_sweep.sweeps.results.records import CONFIG
from carft_sweep.sweeps.spec.user_code import place_of
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.store.base import DatasetInput

TRAIN = "train"
_DIGITS = 12
"""Characters of the data's digest beside a data set's name; the run's parameters have all."""

logger = logging.getLogger(__name__)


def run_datasets(claimed: Mapping[str, Any], facts: Mapping[str, Any]) -> list[DatasetInput]:
    """Return the data sets of a run: its training split, from `claimed`, its `config.json`, and its
    measured splits, from the `facts` of its evaluation. [] where these do not name the data."""
    try:
        config = DataConfig.model_validate(claimed["config"]["data"])
        source, digest = place_of(config), str(facts["data"])[:_DIGITS]
    except (RequestError, KeyError, ValueError) as error:
        logger.info("the data of a run are not named: %s", error)
        return []
    trains = claimed["identity"].get("optim") is not None
    splits = (*((TRAIN,) if trains else ()), *facts.get("images", ()))
    names = {split: f"{config.family}/{split}" for split in splits}
    return [DatasetInput(names[split], digest, source, _context(split)) for split in splits]


def sweep_datasets(records: Sequence[RunRecord]) -> list[DatasetInput]:
    """Return the data sets of all runs of a sweep, training splits first."""
    entries: dict[DatasetInput, None] = {}
    for record in records:
        if record.folder is not None and record.facts:
            try:
                claimed = read_json(record.folder / CONFIG, Claim) or {}
            except RequestError as error:
                logger.info("the data of a run are not named: %s", error)
                continue
            entries |= dict.fromkeys(run_datasets(claimed, record.facts))
    return sorted(entries, key=lambda entry: entry.context != _context(TRAIN))


def _context(split: str) -> str:
    """Return the use of a split (its name in metrics): training, validation, test, shift/NAME."""
    if split.startswith("ood/"):
        return f"shift/{split.removeprefix('ood/')}"
    return {TRAIN: "training", "id/val": "validation"}.get(split, "test")
