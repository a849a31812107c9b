"""How much memory a run takes, and how many operations, before anything runs.

A step is computed with tensors that have shapes and no numbers. So neither weights, data nor the
device are needed, and a batch of 10,000 images takes as long as one of two.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from carft_sweep.carft_core.algorithms import Algorithm, Batch, loss_and_terms
from carft_sweep.carft_core.algorithms.base import classes_of
from carft_sweep.carft_core.config.trial import EVALUATED, TrialConfig
from carft_sweep.carft_core.data import Split, open_data
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.evaluation.predictions import TOP, greatest
from carft_sweep.carft_core.files import digest_of, read_json, user_cache, write_cache, write_json
from carft_sweep.carft_core.models.classifier import ImageClassifier, tower_outputs
from carft_sweep.carft_core.models.clip import (
    OpenedClip,
    checkpoint_gradients,
    open_shapes,
    weights_digest,
)
from carft_sweep.carft_core.models.prompts import TemplateSet, context_set, template_set
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.identity import coupling, own_code_of
from carft_sweep.carft_core.training.logistic_regression import PAIRS, Probe, cross_entropy
from carft_sweep.carft_core.training.numerics import autocast
from carft_sweep.carft_core.training.optim import freeze_all_but, images_of_step
from carft_sweep.carft_core.training.ranks import flat_gradients

_LOG = logging.getLogger(__name__)
REVISION = 2
"""Raised by hand when the same config gives another cost."""
LIBRARIES = tuple(version(name) for name in ("torch", "open_clip_torch", "timm"))
"""The versions of the libraries that make a model's layers and compute them."""
CPU = torch.device("cpu")
VECTORS = 2 * PAIRS + 7
"""How many float64 tensors of the size of a probe's weight L-BFGS has in memory at most."""


@dataclass(frozen=True)
class RunCost:
    """The memory and the operations that a run takes."""

    training: int
    """Bytes that the tensors of a step hold at most, with the models, the optimiser and the
    teacher; without what the libraries of a device take for themselves."""
    evaluation: int
    """Bytes likewise while one model is evaluated; several at once only where there is room."""
    step: int
    """Floating-point operations of a step; a multiplication and an addition count as two."""
    image: int
    """Floating-point operations of one model for one image that is evaluated."""
    solving: int = 0
    """The most bytes, likewise, while a linear probe is solved."""
    objective: int = 0
    """Operations, in float64, of one probe's objective and gradient over all training images."""

    @property
    def peak(self) -> int:
        """The most memory of a run, in bytes."""
        return max(self.training, self.evaluation, self.solving)


def run_cost(config: TrialConfig, ranks: int = 1) -> RunCost | None:
    """Return a run's memory and operations, computed or read from the user's cache.

    Args:
        config: The run's config, with precision and split decided.
        ranks: On how many GPUs it is; the cost is that of each.

    Returns:
        None for an algorithm of the user's own that solves its problem without steps, and for one
        whose steps cannot be computed without the values of tensors.

    Raises RequestError when model, data or prompts cannot be used as the config says.
    """
    has_probe = _has_probe(config.algorithm)
    if config.algorithm.solves and not has_probe:
        return None
    data, model = open_data(config.data), config.model
    images, names = _images_of_rank(config, data.train, ranks), data.class_names
    splits = {"train": data.train, "id/val": data.id_val, **data.measured()}
    classes = template_set(config.prompts.classes)
    contexts = context_set(config.prompts.contexts, config.data)
    optim, algorithm, own_code = config.optim, config.algorithm.identity(), own_code_of(config)
    step = [
        # A search over weights and rates, which decide no shape, has one cost.
        [config.algorithm.name, algorithm if own_code else _without_sizes(algorithm)],
        [optim.name, images, _part(images, optim.micro_batch), optim.grad_checkpointing],
        len(set(data.train.groups or ())),
        len(data.train) if has_probe else 0,
        ranks > 1,
    ]
    decisive = {
        "revision": REVISION,
        "libraries": LIBRARIES,
        "model": weights_digest(model.name, model.pretrained),
        "classes": [names, classes.digest],
        "contexts": contexts.digest,
        "step": step if config.algorithm.trains else None,
        "own_code": own_code,
        "items": _most_items(splits),
        "evaluation": config.eval.images_at_once,
        "precision": config.precision,
    }
    file = user_cache() / "run_cost" / f"{digest_of(decisive)}.json"
    with contextlib.suppress(OSError, RequestError):  # it costs time alone
        if file.is_file():
            stored = read_json(file, RunCost | None)
            return RunCost(**stored) if stored else None
    clip = open_shapes(model.name, model.pretrained)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _AsOnCuda():
            teacher = _teacher(clip, names, classes, contexts, config)
            cost = _compute(config, replace(teacher, splits=splits), ranks)
    except Exception as error:  # whatever an algorithm raises that looks at numbers
        _LOG.info("the memory of %s cannot be computed: %s", config.algorithm.name, error)
        cost = None
    write_cache(file, lambda path: write_json(path, asdict(cost) if cost else None))
    return cost


def _most_items(splits: Mapping[str, Split]) -> int:
    """Return the size of the largest split that is predicted."""
    return max(len(split) for name, split in splits.items() if name != "train")


def _images_of_rank(config: TrialConfig, train: Split, ranks: int) -> int:
    """Return how many images of a step a rank has at most."""
    return math.ceil(images_of_step(config.optim, train, balanced=config.data.balanced) / ranks)


def _has_probe(algorithm: Algorithm) -> bool:
    """Return whether a linear probe is solved, by itself or before the steps."""
    return any(issubclass(cls, Probe) for cls in classes_of(algorithm))


def _part(images: int, micro_batch: int | None) -> int:
    """Return how many images of a step are computed at once: a micro-batch, or all."""
    return min(images, micro_batch or images)


def _without_sizes(value: object) -> object:
    """Return plain data with each float replaced by whether it is not 0, since only a term of
    weight 0 is left out of the computation."""
    if isinstance(value, dict):
        return {key: _without_sizes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_sizes(item) for item in value]
    return bool(value) if isinstance(value, float) else value


def fit_batches(config: TrialConfig, room: int, ranks: int = 1) -> TrialConfig:
    """Return the config with batch sizes at which a run takes at most `room` bytes of each of
    `ranks` GPUs.

    A missing `eval.batch_size`, and where it changes no result a missing `optim.micro_batch`, is
    the largest half, quarter, ... of the whole that fits; it stays missing where the whole fits,
    where no part fits, and where the cost is unknown.
    """
    if config.eval.batch_size is None:
        config = _fit(config, ranks, "eval", "batch_size", EVALUATED, "evaluation", room)
    if config.optim.micro_batch is None and config.algorithm.trains and not coupling(config):
        images = _images_of_rank(config, open_data(config.data).train, ranks)
        config = _fit(config, ranks, "optim", "micro_batch", images, "training", room)
    return config


def _fit(
    config: TrialConfig, ranks: int, section: str, field: str, whole: int, moment: str, room: int
) -> TrialConfig:
    """Return the config with `section.field` set to the largest half, quarter, ... of `whole` at
    which the `moment` of a run, a field of RunCost, takes at most `room` bytes."""

    def smaller(size: int) -> TrialConfig:
        changed = getattr(config, section).model_copy(update={field: size})
        return config.model_copy(update={section: changed})

    def fits(size: int) -> bool:
        cost = run_cost(smaller(size), ranks)
        return cost is None or getattr(cost, moment) <= room

    if fits(whole) or not fits(1):
        return config
    size = whole
    while not fits(size):
        size = math.ceil(size / 2)
    return smaller(size)


class PeakMemory(TorchDispatchMode):
    """A mode that counts the bytes of storages made within it (`now`), and the most so far
    (`peak`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: Tensor, *, elsewhere: bool = False) -> None:
        """Count a tensor's storage until it is freed, once; as 0 if `elsewhere`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = 0 if elsewhere else storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return the operation's result, and count its tensors."""
        out = operation(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, Tensor):
                self.add(item)
        return out


class _AsOnCuda(TorchFunctionMode):
    """A mode in which tensors of the CPU without values are computed with as on CUDA.

    Under autocast norms and softmaxes are in float32 on CUDA, and in the type of their input on the
    CPU. The mode also lets such tensors be deep-copied, which PyTorch does not.
    """

    IN_FLOAT32 = frozenset(
        {F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax}
    )

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return the function's result, computed as on CUDA."""
        if function is Tensor.__deepcopy__:
            tensor, copies = args
            copied = copies[id(tensor)] = _like(tensor, tensor.detach().clone())
            return copied
        if function in self.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class _ClipWithoutNumbers(OpenedClip):
    logit_scale = 100.0


def _teacher(
    clip: OpenedClip,
    class_names: tuple[str, ...],
    classes: TemplateSet,
    contexts: TemplateSet,
    config: TrialConfig,
) -> Teacher:
    """Return the teacher of a task, whose tensors have no values."""
    for module in clip.model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None:
                    # In channels_last, as `on_device` puts it.
                    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=layout)
                    tensors[name] = _like(tensor, empty)
    visual, side = clip.image_tower, clip.transform.size
    with torch.no_grad():
        width = tower_outputs(visual, torch.empty(1, 3, side, side)).shape[1]
    head = nn.Linear(width, len(class_names), bias=False)
    classifier = ImageClassifier(copy.deepcopy(visual), head)
    return Teacher(
        clip=_ClipWithoutNumbers(**vars(clip)),
        class_names=class_names,
        splits={},
        digests={},
        transform=clip.transform,
        classes=classes,
        contexts=contexts,
        w_raw=torch.empty(len(classes.templates), len(class_names), width),
        w_cls=torch.empty(len(class_names), width),
        w_ctx=torch.empty(len(contexts.templates), width),
        classifier=classifier.requires_grad_(False).eval(),
        device=CPU,
        precision="fp32" if config.precision == "auto" else config.precision,
    )


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return `values` as a parameter where `tensor` is a parameter, else unchanged."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _compute(config: TrialConfig, teacher: Teacher, ranks: int) -> RunCost:
    """Return the cost of a run, computed by a training step and predictions without values."""
    training = step = solving = objective = 0
    with PeakMemory() as memory:
        for tensor in _tensors(teacher.clip.model):  # views of them are made to copy them
            memory.add(tensor, elsewhere=True)
        for tensor in (*_tensors(teacher.classifier), teacher.w_cls, teacher.w_ctx):
            memory.add(tensor)
        if _has_probe(config.algorithm):
            objective = _solve(teacher, config)
            solving = memory.peak
        if config.algorithm.takes_steps:
            take_step, times = _step_function(config, teacher, ranks)
            memory.peak = memory.now
            with FlopCounterMode(display=False) as counter:
                take_step()
            training, step = memory.peak, round(times * counter.get_total_flops())
        memory.peak = memory.now
        # The largest split: its features by two models, then its logits.
        items, (classes, width) = _most_items(teacher.splits), teacher.w_cls.shape
        features = torch.empty(2, items, width)
        forward = _encode(teacher, config)
        greatest(torch.empty(items, classes), min(TOP, classes))
    del features
    image = forward // config.eval.images_at_once
    return RunCost(training, memory.peak, step, image, solving, objective)


def _encode(teacher: Teacher, config: TrialConfig) -> int:
    """Encode a batch of evaluation, and return its number of floating-point operations."""
    views = _batch(teacher, config.eval.images_at_once, config).images
    forward = FlopCounterMode(display=False)
    with torch.no_grad(), autocast(CPU, teacher.precision), forward:
        teacher.classifier(views)
    return forward.get_total_flops()


def _solve(teacher: Teacher, config: TrialConfig) -> int:
    """Solve a linear probe of all training images as far as it decides the memory, and return the
    operations of one evaluation of its objective."""
    count, (classes, width) = len(teacher.splits["train"]), teacher.w_cls.shape
    model = teacher.new_classifier()
    features = torch.cat([torch.empty(count, width)])  # of all batches
    _encode(teacher, config)
    labels = torch.zeros(count, dtype=torch.int64)
    weight = torch.empty(classes, width, dtype=torch.float64, requires_grad=True)
    pairs = torch.empty(VECTORS, classes, width, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(weight, features, labels)
    del model, pairs
    return int(counter.get_total_flops())


def _step_function(
    config: TrialConfig, teacher: Teacher, ranks: int
) -> tuple[Callable[[], object], float]:
    """Return a function that takes one training step on at most two micro-batches, and the factor
    from its operations to a whole step's. It holds the models and the optimiser's state."""
    algorithm, optim = config.algorithm, config.optim
    images = _images_of_rank(config, teacher.splits["train"], ranks)
    size = _part(images, optim.micro_batch)
    parts = 1 if algorithm.couples_items else math.ceil(images / size)
    # After the first part of a batch its gradients are there; a third one changes nothing.
    computed = min(parts, 2)
    model = algorithm.build(teacher)
    if optim.grad_checkpointing:
        checkpoint_gradients(model, teacher.classifier.visual)
    groups = algorithm.groups(model, optim)
    trained = freeze_all_but(model, groups)
    optimiser = algorithm.optimiser(groups, optim)

    def make_state() -> Tensor:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        return torch.empty(())

    def closure() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = torch.empty(())
        for _ in range(computed):
            batch = _batch(teacher, images if parts == 1 else size, config)
            with autocast(CPU, teacher.precision):
                loss, _ = loss_and_terms(algorithm, model, batch, teacher)
            loss.backward()
        if ranks > 1:
            flat_gradients([p.grad for p in trained if p.grad is not None])
        return loss.detach()

    optimiser.step(make_state)  # type: ignore[arg-type]  # a tensor is a float to it
    optimiser.zero_grad(set_to_none=True)
    return partial(optimiser.step, closure), parts / computed


def _batch(teacher: Teacher, count: int, config: TrialConfig) -> Batch:
    side, optim = teacher.transform.size, config.optim
    domains = len(set(teacher.splits["train"].groups or ()))
    with unset_fake_temporarily():  # with numbers, since losses look at these
        domain = torch.arange(count) % domains if domains else None
    return Batch(
        images=torch.empty(count, 3, side, side).contiguous(memory_format=torch.channels_last),
        labels=torch.zeros(count, dtype=torch.int64),
        index=torch.zeros(count, dtype=torch.int64),
        domain=domain,
        label_smoothing=optim.label_smoothing,
        micro_batch=optim.micro_batch,
        teacher_features=teacher.image_features,
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
