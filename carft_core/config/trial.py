"""The trial config: what one run is, frozen and validated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Wrapper
from carft_sweep.carft_core.config.fields import (
    PositiveInt,
    Section,
    each_once,
    error_of,
    explained,
)
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.errors import InvalidConfig, Problem, RequestError, unknown
from carft_sweep.carft_core.merges import Merge
from carft_sweep.carft_core.training.optim import OptimConfig

DEFAULT_EPOCHS = 10
SMALL, SMALL_RATE = ("builtin", "builtin_vit"), 5e-4
"""The small models in the package, and their default learning rate."""
DEVICE = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


def _device(value: str) -> str:
    if re.fullmatch(DEVICE, value):
        return value
    near = "; for an Nvidia GPU say cuda" if value.lower().startswith("gpu") else ""
    raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, got {value[:80]!r}{near}")


Device = Annotated[
    str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE})$"})
]


def _family(value: str) -> str:
    if value not in FAMILIES:
        raise ValueError(FAMILIES.unknown(value))
    return value


FamilyName = Annotated[str, AfterValidator(_family)]


class ModelConfig(Section):
    """Which CLIP: `builtin`, an open_clip name with its tag, `hf-hub:...`, or a checkpoint file."""

    name: str = "builtin"
    """`builtin`, `builtin_vit`, a name of open_clip's such as `ViT-B-32`, `hf-hub:...`, or a
    checkpoint file. `model: builtin` is short for it."""
    pretrained: str | None = None
    """The weights: a tag of open_clip's such as `openai`, or a file."""


def _template_set(value: object) -> object:
    if isinstance(value, str):
        return value
    raise ValueError(
        "must name a template set, such as openai, or a file of templates (.txt, .yaml), got "
        f"{str(value)[:80]}"
    )


TemplateSetName = Annotated[str, BeforeValidator(_template_set)]


class PromptsConfig(Section):
    """Template sets, by name or as a path to a file: for the classifier and for the contexts."""

    classes: TemplateSetName = "openai"
    """The templates that name the classes: a set's name, or a file."""
    contexts: TemplateSetName = "openai"
    """The templates that name the contexts, likewise."""


EVALUATED = 256
"""How many images are evaluated at once by default."""


class EvalConfig(Section):
    """How a finished run is measured; a change here never trains anything again."""

    every_epoch: bool = False
    """Whether test and shifts are measured after every epoch."""
    batch_size: PositiveInt | None = None
    """Images at once, which decides speed and memory only; left out, 256, or on a GPU that does not
    hold them the largest half, quarter, ... that fits."""
    context_probe: bool = True
    """Whether `context/<split>/kl` and `entropy` are measured: how far the context distribution has
    moved from the zero-shot model's."""
    logits: Literal["auto", "always", "never"] = "auto"
    """Whether full logits are kept beside the predictions; `auto`: below 50 MB a split."""
    retention: Annotated[tuple[FamilyName, ...], AfterValidator(each_once)] = ()
    """Other families than the run's own, on whose test splits forgetting is measured."""
    retention_root: str | None = None
    """The data root of the families of `eval.retention`, where it is not `data.root`."""

    @property
    def images_at_once(self) -> int:
        """The number of images that are evaluated at once: `batch_size`, or the default."""
        return self.batch_size or EVALUATED


class KeepConfig(Section):
    """Which checkpoint is the result, and what stays on disk once a run is done."""

    result: Literal["last", "best_val"] = "last"
    """Which epoch is the result: the last, or the best on `id/val`."""
    weights: bool = True
    """Whether a run's weights stay on disk, for `export`, soups and later merges."""
    predictions: bool = True
    """Whether the prediction for each image stays on disk, for charts and intervals over images."""


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "prompts": PromptsConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "keep": KeepConfig,
}
SCALARS = ("device", "precision", "deterministic", "compile", "workers")
"""The fields that stand in no section."""


def _listed(value: object) -> object:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of merges, got {value!r}")
    return value


def _named_once(merges: tuple[Merge, ...]) -> tuple[Merge, ...]:
    names = [merge.name for merge in merges]
    twice = [
        Problem((index,), f"{name} is in the list twice; give one list of its points")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    if twice:
        raise error_of(twice)
    return merges


class TrialConfig(Section):
    """One point of a sweep's space, complete: with a seed it is a run.

    Built by `trial_config`, which fills in the family's defaults and reports every mistake.
    """

    model: ModelConfig
    data: DataConfig
    prompts: PromptsConfig
    algorithm: Algorithm
    optim: OptimConfig
    merges: Annotated[tuple[Merge, ...], BeforeValidator(_listed), AfterValidator(_named_once)] = ()
    """The merges of each run with the zero-shot model: names, or mappings with fields."""
    eval: EvalConfig
    keep: KeepConfig
    device: Device = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is what a run gets by its `resources`."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU that computes it, else fp32; `tf32` is CUDA's."""
    deterministic: bool = False
    """Only kernels that give the same bits each time; slower on a GPU."""
    compile: bool | Literal["auto"] = "auto"
    """Whether the image towers are compiled for training; `auto`: on CUDA where all steps together
    have 2 million images or more."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that load images; `auto`: on a GPU a run's cores but one, at most 16; else none."""

    @property
    def follows_seed(self) -> bool:
        """Whether a run's seed decides the run's data split as well."""
        return self.data.split_seed == "seed"

    def for_seed(self, seed: int) -> TrialConfig:
        """Return the config of the run with this seed, in which `data.split_seed` is a number."""
        if not self.follows_seed:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"split_seed": seed})})

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain data, from which `trial_config` makes an equal config."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


def trial_config(data: Mapping[str, Any]) -> TrialConfig:
    """Validate nested plain data, such as a sweep file's `trial:`, and return its config. Fields
    left out take the family's default, then the product's. Raises InvalidConfig with every mistake
    at once, each with its path."""
    complete, problems = _with_defaults(data)
    try:
        config = TrialConfig.model_validate(complete)
    except ValidationError as error:
        problems += explained(error, TrialConfig)
    else:
        problems += _refusals(config)
    if problems:
        raise InvalidConfig(problems)
    return config


def _refusals(config: TrialConfig) -> Iterator[Problem]:
    """Yield a problem for `keep.result` where the algorithm needs the last epoch, for each merge
    without labels for its points, and for each merge that refuses the algorithm."""
    algorithm = config.algorithm
    if algorithm.needs_last_epoch and config.keep.result != "last":
        message = f"{algorithm.name} has its result behind the last epoch; write last"
        yield Problem(("keep", "result"), message)
    for index, merge in enumerate(config.merges):
        try:
            merge.points()
        except RequestError as error:
            yield Problem(("merges", index), str(error))
    if not algorithm.trains and algorithm.starts_at_zero_shot:
        return  # the zero-shot model itself, which has no merges
    for index, merge in enumerate(config.merges):
        reason = merge.refuses(algorithm)
        if reason is not None:
            message = f"{merge.name} cannot be made of {algorithm.name}: {reason}"
            yield Problem(("merges", index), message)


def _with_defaults(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the data with missing fields filled in, and the problems of the family: an unknown
    name, a wrong default, an `augmentation` that it does not take."""
    problems: list[Problem] = []
    complete: dict[str, Any] = {"algorithm": None, **data}
    # What is no mapping stays, and is refused when the config is validated.
    for name in SECTIONS:
        section = data.get(name) or {}
        complete[name] = dict(section) if isinstance(section, Mapping) else section
    sections: dict[str, dict[str, Any]] = {
        name: complete[name] if isinstance(complete[name], dict) else {} for name in SECTIONS
    }
    for length in ("epochs", "steps"):  # null counts as left out
        if sections["optim"].get(length) is None:
            sections["optim"].pop(length, None)
    name = sections["data"].get("family", "icon_shift")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None and isinstance(name, str):
        problems.append(Problem(("data", "family"), FAMILIES.unknown(name)))
    if (
        family
        and "data.augmentation" not in family.defaults
        and sections["data"].get("augmentation")
    ):
        message = f"{family.name} has training views of its own; leave the field out"
        problems.append(Problem(("data", "augmentation"), message))
    for field, value in (family.defaults if family else {}).items():
        section, _, key = field.partition(".")
        if section not in SECTIONS:
            message = f"the family has a default for an {unknown('field', field, field_names())}"
            problems.append(Problem(("data", "family"), message))
        elif not _of_another_length(field, sections["optim"]):
            sections[section].setdefault(key, value)
    if sections["model"].get("name", SMALL[0]) in SMALL:
        sections["optim"].setdefault("lr", SMALL_RATE)
    if "steps" not in sections["optim"]:
        sections["optim"].setdefault("epochs", DEFAULT_EPOCHS)
    return complete, problems


def _of_another_length(field: str, optim: Mapping[str, Any]) -> bool:
    """Return whether a family's default is in epochs where steps are given, or the reverse."""
    if field == "optim.epochs":
        return "steps" in optim
    return field in ("optim.steps", "optim.steps_per_epoch") and "epochs" in optim


def field_names(algorithm: str | None = None) -> tuple[str, ...]:
    """Return the dotted name of every field that a sweep may vary, for one algorithm or for all."""
    names = [f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.model_fields]
    algorithms = ALGORITHMS.values() if algorithm is None else (ALGORITHMS[algorithm],)
    names += ["algorithm.name"]
    names += sorted({f"algorithm.{key}" for cls in algorithms for key in cls.model_fields})
    if any(issubclass(cls, Wrapper) for cls in algorithms):
        inner = {key for cls in ALGORITHMS.values() for key in cls.model_fields}
        names += ["algorithm.of.name", *sorted(f"algorithm.of.{key}" for key in inner)]
    return (*names, "merges", *SCALARS)


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested plain data as (dotted name, leaf); lists are leaves."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value
