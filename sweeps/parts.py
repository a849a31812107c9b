"""A sweep of a home as a part of a comparison: its runs, and how it judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carft_core.files import read_json
from sweeps.home import Home
from sweeps.named import look
from sweeps.records import records, rule, terms
from sweeps.runs import Runs
from tracking.fields import fields
from tracking.joint import Part
from tracking.judging import Judging

if TYPE_CHECKING:
    from sweeps.mirror import Kept

CONFIG = "config.json"


def parts(home: Home, names: Sequence[str], *, with_fields: bool | None = None) -> list[Part]:
    """The sweeps of these names; raises RequestError with the nearest name for one that is not.

    `with_fields` reads every run's config, as a comparison of several sweeps wants it; None: only
    where there are several.
    """
    runs, wanted = Runs(home.runs), list(dict.fromkeys(names))
    wide = len(wanted) > 1 if with_fields is None else with_fields
    return [part(look(home, name), runs, with_fields=wide) for name in wanted]


def part(sweep: Kept, runs: Runs, *, with_fields: bool = False) -> Part:
    """One sweep."""
    found = records(sweep, runs)
    digests = dict.fromkeys(record.digest for record in found) if with_fields else {}
    claimed = ((digest, read_json(runs.folder(digest) / CONFIG)) for digest in digests)
    return Part(
        sweep=sweep.name,
        records=found,
        judging=judging(sweep.spec),
        fields={digest: fields(config) for digest, config in claimed if config is not None},
    )


def judging(spec: Mapping[str, Any]) -> Judging:
    """How a sweep chooses and judges, from its plain data."""
    fresh = tuple(spec.get("confirm_seeds") or ())
    return Judging(rule(spec), tuple(spec["seeds"]), fresh, terms(spec), spec.get("tasks"))
