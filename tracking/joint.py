"""One comparison of several sweeps: their runs as one set, settings told apart by what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracking import caveats, filters
from tracking.base import TrackingError
from tracking.compare import REFERENCE, Comparison
from tracking.fields import tells_apart
from tracking.filters import Condition
from tracking.judging import Judging, agreed, common_seeds
from tracking.names import unknown
from tracking.records import RunRecord, Scalar, group, params_key
from tracking.tasks import check_equal, compared_by

SWEEP = "sweep"
"""The field that tells two runs apart which differ in nothing that a config says."""
SPLIT_SEED = "data.split_seed"
_SAME = frozenset({"trial", "baseline"})
"""Roles in which a run may stand twice and count once."""


@dataclass(frozen=True)
class Part:
    """The runs of one sweep, and how it judges them."""

    sweep: str
    records: Sequence[RunRecord]
    judging: Judging = field(default_factory=Judging)
    fields: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """By digest every field of a run (`tracking.fields`); wanted of several sweeps only."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of how it was read."""


def compared(
    parts: Sequence[Part],
    *,
    judging: Judging | None = None,
    conditions: Sequence[Condition] = (),
    reference: str = REFERENCE,
    with_images: bool = False,
) -> Comparison:
    """The comparison of one sweep, or of several as if they were one.

    `judging` goes before that of the sweeps. Raises TrackingError when the sweeps judge
    differently, no run is left by the conditions, or no run is of the algorithm `reference`.
    """
    chosen = judging or agreed({part.sweep: part.judging for part in parts})
    records = list(parts[0].records) if len(parts) == 1 else unified(parts)
    kept = filters.chosen(records, conditions, sweeps_of(parts)) if conditions else records
    if reference != REFERENCE:
        _check_reference(reference, kept)
    plain = [_without_sweep(record) for record in kept]
    told_apart = any(SWEEP in record.params for record in kept)
    if chosen.tasks is not None:
        check_equal(chosen.tasks, {part.sweep: part.records for part in parts})
    found = compared_by(chosen.tasks)(
        kept,
        sweep=" + ".join(part.sweep for part in parts),
        rule=chosen.rule,
        seeds=filters.seeds(chosen.seeds, conditions),
        reference=reference,
        terms=chosen.terms,
        confirm_seeds=filters.seeds(chosen.confirm_seeds, conditions),
        untuned=caveats.untuned(group(plain)) if told_apart else None,
        with_images=with_images,
    )
    said = (*_filtered(conditions, len(kept), len(records)), *_seeds(parts))
    said += tuple(warning for part in parts for warning in part.warnings)
    return replace(found, warnings=(*said, *found.warnings)) if said else found


def unified(parts: Sequence[Part]) -> list[RunRecord]:
    """The runs of all sweeps, each once; its params are the fields in which the runs differ.

    Where two finished runs have equal fields and the same seed and yet are two (other code, other
    data under the same name), the name of the sweep tells them apart.
    """
    pairs = [(record, known) for part in parts for record, known in _known(part)]
    differing = _differing([known for _, known in pairs])
    differing |= {name for record, _ in pairs for name in record.params if tells_apart(name)}
    once: dict[tuple[str, str], RunRecord] = {}
    for record, known in pairs:
        params = {name: value for name, value in known.items() if name in differing}
        key = (record.digest, "" if record.role in _SAME else record.role)
        new = replace(record, params=params)
        once[key] = new if key not in once else _as_one(once[key], new)
    return _told_apart(list(once.values()), sweeps_of(parts))


def sweeps_of(parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """Which sweeps have a run, by its digest."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for record in part.records:
            found.setdefault(record.digest, {})[part.sweep] = None
    return {digest: tuple(names) for digest, names in found.items()}


def _known(part: Part) -> Iterator[tuple[RunRecord, Mapping[str, Scalar]]]:
    """Every run with its fields; one that left no config takes those that its siblings share."""
    shared: dict[str, dict[str, Scalar]] = {}
    follows = _follows_seed(part)
    for record in part.records:
        own = part.fields.get(record.digest)
        if own is None:
            continue
        if record.algorithm not in shared:
            shared[record.algorithm] = dict(own)
            continue
        common = shared[record.algorithm]
        for name in [name for name in common if name not in own or own[name] != common[name]]:
            del common[name]
    for record in part.records:
        known = part.fields.get(record.digest, shared.get(record.algorithm, {}))
        varied = {name: value for name, value in record.params.items() if tells_apart(name)}
        fields = {**known, **varied}
        if not record.trains:  # Nothing is trained, whatever the optimiser would have been.
            fields = {name: v for name, v in fields.items() if not name.startswith("optim.")}
        yield record, {**fields, SPLIT_SEED: "seed"} if follows else fields


def _follows_seed(part: Part) -> bool:
    """Whether every run's split is that of its own seed: then it parts no two of a setting."""
    known = [
        (record.seed, own.get(SPLIT_SEED))
        for record in part.records
        if record.seed is not None and (own := part.fields.get(record.digest)) is not None
    ]
    return len(set(known)) > 1 and all(seed == split for seed, split in known)


def _differing(every: Sequence[Mapping[str, Scalar]]) -> set[str]:
    values: dict[str, set[str]] = {}
    for known in every:
        for name, value in known.items():
            values.setdefault(name, set()).add(params_key({name: value}))
    return {name for name, found in values.items() if len(found) > 1}


def _as_one(one: RunRecord, other: RunRecord) -> RunRecord:
    """The same run as two sweeps know it: finished where one says so, with the merges of both."""
    ranked = sorted((one, other), key=lambda run: (run.state != "done", run.role != "trial"))
    return replace(ranked[0], merges={**ranked[1].merges, **ranked[0].merges})


def _told_apart(
    records: Sequence[RunRecord], sweeps: Mapping[str, Sequence[str]]
) -> list[RunRecord]:
    keys = [
        (record.algorithm, params_key(record.params), record.role in _SAME) for record in records
    ]
    seeds = Counter(
        (key, record.seed)
        for key, record in zip(keys, records, strict=True)
        if record.state == "done"
    )
    twice = {key for (key, _), count in seeds.items() if count > 1}
    return [
        replace(record, params={**record.params, SWEEP: ", ".join(sweeps[record.digest])})
        if key in twice
        else record
        for key, record in zip(keys, records, strict=True)
    ]


def _without_sweep(record: RunRecord) -> RunRecord:
    if SWEEP not in record.params:
        return record
    params = {name: value for name, value in record.params.items() if name != SWEEP}
    return replace(record, params=params)


def _check_reference(reference: str, records: Sequence[RunRecord]) -> None:
    algorithms = sorted({record.algorithm for record in records})
    if reference not in algorithms:
        raise TrackingError(f"--reference: {unknown('algorithm', reference, algorithms)}")


def _filtered(conditions: Sequence[Condition], left: int, of: int) -> tuple[str, ...]:
    if not conditions:
        return ()
    where = " and ".join(map(str, conditions))
    return (f"only the runs where {where}: {left} of {of}; choice and verdict are of these",)


def _seeds(parts: Sequence[Part]) -> tuple[str, ...]:
    """One sentence where a setting of one sweep has seeds that another's has not."""
    told = {part.sweep: part.judging.seeds for part in parts}
    if len(set(told.values())) < 2:
        return ()
    each = "; ".join(f"{name}: {_numbers(seeds)}" for name, seeds in told.items())
    whole = common_seeds([*told.values()])
    ones = "those of all, since none is common" if whole is None else "the common ones"
    return (f"the sweeps have different seeds ({each}); a setting is whole with {ones}",)


def _numbers(seeds: Sequence[int] | None) -> str:
    return "any" if seeds is None else ", ".join(map(str, seeds)) or "none"
