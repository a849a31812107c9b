"""The trial config: what one run is, frozen and validated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
)

from carft_core.algorithms import ALGORITHMS, Algorithm, Wrapper
from carft_core.data import FAMILIES
from carft_core.data.base import DataConfig
from carft_core.errors import InvalidConfig, Problem, dotted, unknown
from carft_core.fields import (
    PositiveInt,
    Section,
    each_once,
    explained,
)
from carft_core.merges import MERGES, Merge
from carft_core.optim import OptimConfig

M = TypeVar("M", bound=BaseModel)


DEFAULT_EPOCHS = 10


class TrialConfig(Section):
    """One point of a sweep's space, complete: with a seed it is a run.

    Built by `trial_config`, which fills in the family's defaults and reports every mistake.
    """

    model: ModelConfig
    data: DataConfig
    prompts: PromptsConfig
    algorithm: SerializeAsAny[Algorithm]
    optim: OptimConfig
    merges: tuple[SerializeAsAny[Merge], ...] = ()
    eval: EvalConfig
    keep: KeepConfig
    device: Device = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    deterministic: bool = False
    """Only kernels that give the same bits each time, which on a GPU costs speed."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that load images."""

    @property
    def follows_seed(self) -> bool:
        """Whether a run's seed decides its split as well."""
        return self.data.split_seed == "seed"

    def for_seed(self, seed: int) -> TrialConfig:
        """That of the run with this seed, in which `data.split_seed` is a number."""
        if not self.follows_seed:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"split_seed": seed})})

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `trial_config` reads back to an equal config."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        plain["algorithm"] = {"name": self.algorithm.name, **plain["algorithm"]}
        plain["merges"] = [
            {"name": merge.name, **fields}
            for merge, fields in zip(self.merges, plain["merges"], strict=True)
        ]
        return plain


def trial_config(data: Mapping[str, Any]) -> TrialConfig:
    """Validate nested plain data, as a sweep file's `trial:` holds it.

    Fields left out take the family's default, then the product's. Raises InvalidConfig with
    every mistake at once, each with its path.
    """
    problems: list[Problem] = []
    allowed = {*SECTIONS, "algorithm", "merges", *SCALARS}
    problems += [
        Problem((key,), unknown("field", key, allowed)) for key in data if key not in allowed
    ]
    given = {name: _mapping(data.get(name), (name,), problems) for name in SECTIONS}
    _fill_in(given, problems)
    parts: dict[str, Any] = {
        name: _validated(cls, given[name], (name,), problems) for name, cls in SECTIONS.items()
    }
    parts["algorithm"] = _named(
        "algorithm", ALGORITHMS, data.get("algorithm"), ("algorithm",), problems
    )
    parts["merges"] = _merges(data.get("merges"), problems)
    if parts["algorithm"] is not None:
        refusals = [merge.refuses(parts["algorithm"]) for merge in parts["merges"]]
        problems += [Problem(("merges",), it) for it in refusals if it is not None]
    for key in SCALARS:
        if key in data:
            parts[key] = data[key]
    if problems:
        # The scalar fields are still to be seen, so that all mistakes come at once.
        scalars: dict[str, Any] = {k: parts[k] for k in SCALARS if k in parts}
        problems += _scalar_problems(scalars)
        raise InvalidConfig(problems)
    config = _validated(TrialConfig, parts, (), problems)
    if problems or config is None:
        raise InvalidConfig(problems)
    return config


def _fill_in(given: Mapping[str, dict[str, Any]], problems: list[Problem]) -> None:
    """Give the fields that are left out the family's default, then the product's."""
    family_name = given["data"].get("family", "icon_shift")
    family = FAMILIES.get(family_name) if isinstance(family_name, str) else None
    if family is None and isinstance(family_name, str):
        problems.append(Problem(("data", "family"), unknown("family", family_name, FAMILIES)))
    if family and "data.augmentation" not in family.defaults and given["data"].get("augmentation"):
        message = f"{family.name} has training views of its own; leave the field out"
        problems.append(Problem(("data", "augmentation"), message))
    for field, value in (family.defaults if family else {}).items():
        section, _, key = field.partition(".")
        if section not in given:
            message = f"the family has a default for an {unknown('field', field, field_names())}"
            problems.append(Problem(("data", "family"), message))
            continue
        if _of_another_length(field, given["optim"]):
            continue
        given[section].setdefault(key, value)
    if given["optim"].get("steps") is None:
        given["optim"].setdefault("epochs", DEFAULT_EPOCHS)


def _of_another_length(field: str, optim: Mapping[str, Any]) -> bool:
    """Whether a family's default is in epochs where steps are given, or the other way round."""
    if field == "optim.epochs":
        return optim.get("steps") is not None
    return field in ("optim.steps", "optim.steps_per_epoch") and optim.get("epochs") is not None


def field_names(algorithm: str | None = None) -> tuple[str, ...]:
    """Every dotted field a sweep may vary, those of one algorithm or of all."""
    names = [f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.model_fields]
    chosen = ALGORITHMS.values() if algorithm is None else (ALGORITHMS[algorithm],)
    names += ["algorithm.name"]
    names += sorted({f"algorithm.{key}" for cls in chosen for key in cls.model_fields})
    if any(issubclass(cls, Wrapper) for cls in chosen):
        inner = {key for cls in ALGORITHMS.values() for key in cls.model_fields}
        names += ["algorithm.of.name", *sorted(f"algorithm.of.{key}" for key in inner)]
    return (*names, "merges", *SCALARS)


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested plain data as (dotted name, leaf); lists are leaves."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def _mapping(value: object, path: tuple[str | int, ...], problems: list[Problem]) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    problems.append(Problem(path, f"must be a mapping of fields, got {value!r}"))
    return {}


def _merges(value: object, problems: list[Problem]) -> tuple[Merge, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        problems.append(Problem(("merges",), f"must be a list of merges, got {value!r}"))
        return ()
    merges = [
        _named("merge", MERGES, item, ("merges", index), problems)
        for index, item in enumerate(value)
    ]
    names = [merge.name for merge in merges if merge is not None]
    problems += [
        Problem(("merges", index), f"{name} stands in the list twice; give one list of its points")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    return tuple(merge for merge in merges if merge is not None)


def _named(
    kind: str,
    registry: Mapping[str, type[M]],
    value: object,
    path: tuple[str | int, ...],
    problems: list[Problem],
) -> M | None:
    """The registered model that `{name: ..., **fields}` (or a bare name) speaks of."""
    fields = {"name": value} if isinstance(value, str) else _mapping(value, path, problems)
    name = fields.pop("name", None)
    if name is None:
        if value is None or isinstance(value, Mapping):
            known = ", ".join(sorted(registry))
            problems.append(Problem((*path, "name"), f"which {kind}? Known: {known}."))
        return None
    if not isinstance(name, str) or name not in registry:
        problems.append(Problem((*path, "name"), unknown(kind, name, registry)))
        return None
    return _validated(registry[name], fields, path, problems)


def _validated(
    cls: type[M], fields: Mapping[str, Any], path: tuple[str | int, ...], problems: list[Problem]
) -> M | None:
    try:
        return cls.model_validate(dict(fields))
    except ValidationError as error:
        problems += explained(error, cls, path)
        return None


def _scalar_problems(scalars: dict[str, Any]) -> list[Problem]:
    try:
        TrialConfig.model_validate(dict(scalars))
    except ValidationError as error:
        found = explained(error, TrialConfig, ())
        return [problem for problem in found if dotted(problem.path) in scalars]
    return []


def _family(value: str) -> str:
    if value not in FAMILIES:
        raise ValueError(unknown("family", value, FAMILIES))
    return value


FamilyName = Annotated[str, AfterValidator(_family)]


class ModelConfig(Section):
    """Which CLIP: `builtin`, an open_clip name with its tag, `hf-hub:...`, or a checkpoint file."""

    name: str = "builtin"
    pretrained: str | None = None


class PromptsConfig(Section):
    """Template sets, by name or as a path to a file: for the classifier and for the contexts."""

    classes: str = "openai"
    contexts: str = "openai"


class EvalConfig(Section):
    """How a finished run is measured; a change here never trains anything again."""

    every_epoch: bool = False
    batch_size: PositiveInt = 256
    context_probe: bool = True
    logits: Literal["auto", "always", "never"] = "auto"
    """Full logits beside the predictions: `auto` below 50 MB a split."""
    retention: Annotated[
        tuple[FamilyName, ...], Field(strict=False), AfterValidator(each_once)
    ] = ()
    """Other families: how much of the zero-shot model's accuracy on their tests is left. The
    run's own among them is left out."""
    retention_root: str | None = None
    """The data root of these families, if it is not `data.root`."""


class KeepConfig(Section):
    """Which checkpoint is the result, and what stays on disk once a run is done."""

    result: Literal["last", "best_val"] = "last"
    weights: bool = True
    predictions: bool = True


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "prompts": PromptsConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "keep": KeepConfig,
}

SCALARS = ("device", "precision", "deterministic", "workers")
"""The fields that stand in no section."""


DEVICE = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


def _device(value: str) -> str:
    if re.fullmatch(DEVICE, value):
        return value
    near = "; for an Nvidia GPU say cuda" if value.lower().startswith("gpu") else ""
    raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, got {value[:80]!r}{near}")


Device = Annotated[
    str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE})$"})
]
