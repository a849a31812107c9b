"""What makes two runs the same: the digests of a run and of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from carft_sweep.carft_core.algorithms import Soup, Wrapper
from carft_sweep.carft_core.algorithms.base import PARTS, classes_of
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.config.user_code import own_code
from carft_sweep.carft_core.data import FAMILIES, FamilyData, open_data
from carft_sweep.carft_core.data.splits import TRAINING_SPLITS
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import digest_of
from carft_sweep.carft_core.merges import Model
from carft_sweep.carft_core.models.clip import draws_at_random, open_shapes, weights_digest
from carft_sweep.carft_core.models.prompts import context_set, template_set
from carft_sweep.carft_core.training.numerics import resolve_device, resolve_precision
from carft_sweep.carft_core.training.optim import OPTIMISERS
from carft_sweep.carft_core.training.setup import other_data, templates_of

TRAINING_REVISION = 1
"""Raised by hand with every change of the code that moves the weights of some run; the golden test
(tests/golden) fails where numbers move and this does not."""
MEASURING_REVISION = 1
"""Raised likewise when equal weights get other metrics."""
OUTSIDE = {"root", "shifts", "augmentation", "bad_files", "balanced"}
"""Data fields left out of the digest; the effects of the last three are added separately."""


@dataclass(frozen=True)
class Identity:
    """A run's digest, and the parts that it covers."""

    digest: str
    parts: Mapping[str, Any]


def identify(config: TrialConfig, seed: int) -> Identity:
    """Return the identity of one run: whatever decides its weights, and nothing else.

    `data.root`, `data.shifts`, `merges`, `eval`, `keep`, `compile`, `workers` and
    `optim.grad_checkpointing` are outside; so are the number of ranks, and `optim.micro_batch`
    unless items of a batch are coupled, what the algorithm does not use of contexts, and a number
    for `data.split_seed` where the family says that it draws nothing. Inside is
    what an augmentation does, not its name, and which images training lacks, not `data.bad_files`.
    An algorithm that trains nothing has no seed, optimiser, augmentation or balance inside, but may
    have the split of a seed; one that solves its problem has of these the seed alone; a soup has
    `keep.result`, the epoch of its members' weights. For `auto`, device or precision are this
    machine's.

    Raises RequestError when model or data cannot be opened.
    """
    is_split_by_seed = config.data.split_seed == "seed"
    config = config.for_seed(seed)
    algorithm = config.algorithm
    data = open_data(config.data)
    fields_of_data = config.data.model_dump(exclude=OUTSIDE)
    if data.has_fixed_splits and not is_split_by_seed:
        fields_of_data["split_seed"] = 0
    computing = _computing(config)
    parts: dict[str, Any] = {
        "revision": TRAINING_REVISION,
        "model": weights_digest(config.model.name, config.model.pretrained),
        "data": {
            "digest": data.digest_of_training,
            **present(**fields_of_data),
            "skipped": _skipped(data, training=True),
        },
        "classes": template_set(config.prompts.classes).digest,
        "algorithm": {"name": algorithm.name, **algorithm.identity()},
        **computing,
        **present(own_code=own_code_of(config)),
        # A CPU gives the same bits with it and without.
        **present(deterministic=config.deterministic and computing["device"] != "cpu"),
    }
    if "contexts" in algorithm.uses:
        parts["contexts"] = context_set(config.prompts.contexts, config.data).digest
    if "domains" in algorithm.uses and len(set(data.train.groups or ())) < 2:
        while isinstance(algorithm, Wrapper):
            algorithm = algorithm.of
        raise RequestError(
            f"algorithm.name: {algorithm.name} needs two domains that train or more, and in this "
            f"config {config.data.family} has fewer (data.family, data.test_domain)"
        )
    if used := algorithm.uses & PARTS.keys():
        model = config.model
        check_parts(model.name, model.pretrained, parts["model"], frozenset(used))
    if isinstance(algorithm, Soup):
        parts["result"] = config.keep.result
    if algorithm.trains:
        parts["seed"] = seed
    if algorithm.takes_steps:
        # Asked only where `micro_batch` is set, since the answer may need open_clip.
        coupled = config.optim.micro_batch is not None and coupling(config) is not None
        outside = {"grad_checkpointing"} | (set() if coupled else {"micro_batch"})
        parts["optim"] = present(**config.optim.model_dump(mode="json", exclude=outside))
        views = config.data.augmentation
        parts["augmentation"] = None if views is None else asdict(AUGMENTATIONS[views])
        parts |= present(balanced=config.data.balanced)
    return Identity(digest_of(parts), parts)


@functools.lru_cache(maxsize=32)
def check_parts(name: str, pretrained: str | None, digest: str, used: frozenset[str]) -> None:
    """Raise RequestError for a model, with this digest, that lacks one of the PARTS in `used`. No
    weights are read."""
    del digest
    clip = open_shapes(name, pretrained)
    for part in sorted(used):
        PARTS[part](clip)


def coupling(config: TrialConfig) -> str | None:
    """Return what makes an item's effect on the weights depend on the other items of its
    micro-batch: a loss that is no mean over images, trained batch norms, layers that draw masks for
    each micro-batch anew. None without coupling. Raises RequestError when the model cannot be
    found."""
    if config.algorithm.couples_items:
        return f"the loss of {config.algorithm.name}"
    if config.optim.batch_norm == "train":
        return "optim.batch_norm: train"
    name, pretrained = config.model.name, config.model.pretrained
    digest = weights_digest(name, pretrained)
    if not config.algorithm.solves and draws_at_random(name, pretrained, digest):
        return f"the dropout or stochastic depth of {name}"
    return None


def check_ranks(config: TrialConfig, size: int) -> None:
    """Raise RequestError for a run that `size` processes cannot compute together."""
    cause = coupling(config) if size > 1 and config.algorithm.trains else None
    if cause is not None:
        raise RequestError(
            f"{cause} couples the images of a batch, so a run cannot be divided among {size} "
            "processes; set resources.gpus: 1"
        )


def _computing(config: TrialConfig) -> dict[str, str]:
    """Return the device and precision of a run: as its config says, whatever this machine has.
    `auto`, where no driver has resolved it, means this machine's."""
    if "auto" not in (config.device, config.precision):
        return {"device": config.device.partition(":")[0], "precision": config.precision}
    device = resolve_device(config.device)
    return {"device": device.type, "precision": resolve_precision(config.precision, device)}


def present(**fields: Any) -> dict[str, Any]:
    """Return the fields that are neither None nor False, so that new fields leave old digests as
    they are."""
    return {
        name: value for name, value in fields.items() if value is not None and value is not False
    }


def evaluation_digest(training_digest: str, model: Model, config: TrialConfig) -> str:
    """Return the digest of one evaluated model of a run: a new alpha, shift or task of
    `eval.retention` changes it, so that the run is evaluated again, not trained. Raises
    RequestError when the data cannot be opened."""
    data = open_data(config.data)
    others = other_data(config.data, config.eval)
    parts_of_others: list[type | Callable[..., object]] = [FAMILIES[name].open for name in others]
    parts: dict[str, Any] = {
        "revision": MEASURING_REVISION,
        "training": training_digest,
        "data": data.digest,
        "result": config.keep.result,
        "logits": config.eval.logits,
        "predictions": config.keep.predictions,
        "skipped": _skipped(data, training=False),
    }
    if config.eval.context_probe:
        parts["contexts"] = context_set(config.prompts.contexts, config.data).digest
    if model is not None:
        merge, point = model
        fields = merge.model_dump(mode="json")
        parts["merge"] = {key: fields[key] for key in fields if key not in merge.point_fields}
        parts["point"] = dict(point.values)
        parts_of_others += classes_of(merge)
    if others:
        parts["retention"] = {
            name: [other.digest, templates_of(name).digest] for name, other in others.items()
        }
    return digest_of(parts | present(own_code=own_code(*parts_of_others)))


def _skipped(data: FamilyData, *, training: bool) -> dict[str, list[str]]:
    """Return the images that were left out of the data, by split: of the splits that train, or of
    those that are only measured."""
    return {
        name: sorted(bad)
        for name, bad in data.skipped.items()
        if (name in TRAINING_SPLITS) == training
    }


def own_code_of(config: TrialConfig) -> str | None:
    """Return the digest of the user's own code that trains a run, of its algorithm, its optimiser
    and its family; None where the package defines all."""
    optimisers = [OPTIMISERS[config.optim.name].make] if config.algorithm.takes_steps else []
    family = FAMILIES[config.data.family]
    return own_code(*classes_of(config.algorithm), *optimisers, family.open)
