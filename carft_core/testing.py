"""The laws that hold for every algorithm, merge and family, for the tests of those who add one."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from carft_sweep.carft_core.algorithms import ALGORITHMS, USES, Algorithm, Batch, loss_and_terms
from carft_sweep.carft_core.config.registry import Registered
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.config.user_code import is_own, module_place, reason
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Split, Transform, open_data
from carft_sweep.carft_core.data.base import RESERVED, DataConfig, Source
from carft_sweep.carft_core.data.contract import TRANSFORM, missing_classes, wrong_items
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.evaluation.measure import FURTHER_METRICS, METRICS
from carft_sweep.carft_core.merges import MERGES, Merge
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.clip import OpenedClip, open_model
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.models.source import BUILTIN
from carft_sweep.carft_core.models.teacher import Teacher, open_teacher
from carft_sweep.carft_core.training.optim import OptimConfig, freeze_all_but


class BrokenContract(AssertionError):
    """A law does not hold; a test that lets it through has failed."""


def must(holds: bool, what: str) -> None:
    """Raise BrokenContract with the law `what` unless `holds`."""
    if not holds:
        raise BrokenContract(what)


def must_be_plain_settings(cls: type[Registered]) -> None:
    """Check that a class is registered, that all fields have defaults, that none can be changed,
    that unknown ones are refused, and that JSON and pickle, by which settings reach other
    processes, lose nothing."""
    name = cls.name
    must(cls.registry.get(name) is cls, f"{name}: it must be registered under its name")
    required = [field for field, info in cls.model_fields.items() if info.is_required()]
    must(not required, f"{name}: every field must have a default; these lack one: {required}")
    settings = cls()
    for field in cls.model_fields:
        try:
            setattr(settings, field, getattr(settings, field))
        except ValidationError:
            continue
        raise BrokenContract(f"{name}: it must be frozen, but {field} can be set")
    text = settings.model_dump_json()
    again = cls.model_validate_json(text)
    must(
        again == settings and again.model_dump_json() == text,
        f"{name}: its fields must survive JSON; got {again!r}",
    )
    must(
        pickle.loads(pickle.dumps(settings)) == settings,
        f"{name}: it must survive pickle, since it goes to other processes",
    )
    try:
        cls.model_validate({"no_such_field": 1})
    except ValidationError:
        return
    raise BrokenContract(f"{name}: it must refuse a field that it does not have")


LABELS = (0, 1, 2, 0, 1, 2)
DOMAINS = (0, 0, 0, 1, 1, 1)
SIDE = 32
"""The side of the laws' images, in pixels."""


def check_algorithm(cls: type[Algorithm], teacher: Teacher | None = None) -> None:
    """Hold a registered algorithm, with its fields at their defaults, to every law.

    On the CPU, with a few random images of 32 pixels; `teacher` has three classes and is by
    default made of the built-in CLIP. Raises BrokenContract with what must hold and does not.
    """
    for law in ALGORITHM_LAWS:
        law(cls, teacher or built_in_teacher())


class _RandomImages(Source):
    """Twelve random images, the same ones in every view."""

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Return the images [B, 3, 32, 32] uint8 at `rows`, whatever the other arguments."""
        del transform, seed, epoch
        generator = torch.Generator().manual_seed(0)
        shape = (2 * len(LABELS), 3, SIDE, SIDE)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return images[torch.tensor(rows)]


@functools.cache
def built_in_teacher() -> Teacher:
    """Return the built-in CLIP as the zero-shot classifier of three classes, with twelve images."""
    return toy_teacher(open_model("builtin"))


def toy_teacher(clip: OpenedClip) -> Teacher:
    """Return a CLIP for images of 32 pixels as the teacher of a task of three classes, on the
    CPU."""
    templates = template_set("simple")
    images = Split(
        ids=tuple(f"image {number}" for number in range(2 * len(LABELS))),
        labels=torch.tensor(LABELS).repeat(2),
        source=_RandomImages(),
        groups=tuple(f"domain {number}" for number in DOMAINS * 2),
    )
    return open_teacher(
        clip,
        ["anchor", "bell", "cat"],
        {"train": images, "id/val": images},
        {"train": "random images", "id/val": "random images"},
        transform=clip.transform,
        classes=templates,
        contexts=templates,
        device=torch.device("cpu"),
    )


def batch_for(teacher: Teacher, *, micro_batch: int | None = None) -> Batch:
    """Return six random images of three classes and two domains as a batch of the loop."""
    return Batch(
        images=torch.randn(len(LABELS), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
        labels=torch.tensor(LABELS),
        index=torch.arange(len(LABELS)),
        domain=torch.tensor(DOMAINS),
        steps=10,
        micro_batch=micro_batch,
        teacher_features=teacher.image_features,
    )


def started(algorithm: Algorithm, teacher: Teacher) -> nn.Module:
    """Return an algorithm's module before the first step, with untrained parameters frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = algorithm.build(teacher)
        algorithm.start(model, teacher)
    freeze_all_but(model, algorithm.groups(model, OptimConfig(lr=1e-3)))
    return model


def loss_of(
    algorithm: Algorithm, model: nn.Module, batch: Batch, teacher: Teacher
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch under a fixed seed, and all logged values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        try:
            loss, logs = loss_and_terms(algorithm, model, batch, teacher)
        except RequestError as error:
            raise BrokenContract(f"{algorithm.name}: {error}") from error
    return loss, {"loss": float(loss.detach()), **{k: float(v.detach()) for k, v in logs.items()}}


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, to compare them with later states."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def equal(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Return whether each tensor of `before` is in `after` with the same bits."""
    return all(torch.equal(after[name], tensor) for name, tensor in before.items())


def check_settings(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that the algorithm is registered, its fields are plain settings, and `uses` names what
    an algorithm may use."""
    del teacher
    must_be_plain_settings(cls)
    strange = cls().uses - USES
    must(not strange, f"{cls.name}: uses may name {sorted(USES)}, not {sorted(strange)}")


def check_what_training_moves(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that a step, or a solution, moves parameters of the groups: no other parameter moves or
    gets a gradient, the teacher stays as it is, and the loss is finite."""
    algorithm = cls()
    if not algorithm.trains:
        return
    model = started(algorithm, teacher)
    groups = algorithm.groups(model, OptimConfig(lr=1e-3))
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    frozen = copy_tensors({name: p for name, p in parameters.items() if id(p) not in trained})
    zero_shot = copy_tensors(teacher.classifier.state_dict())
    state = copy_tensors(model.state_dict())

    def closure() -> Tensor:
        model.zero_grad()
        loss, _ = loss_of(algorithm, model, batch_for(teacher), teacher)
        must(bool(torch.isfinite(loss)), f"{cls.name}: the loss must be finite")
        loss.backward()
        return loss.detach()

    if algorithm.solves:
        for key, value in algorithm.solve(model, teacher).items():
            must(math.isfinite(value), f"{cls.name}: {key} must be finite")
    else:
        optimiser = algorithm.optimiser(groups, OptimConfig(lr=1e-3))
        optimiser.step(closure)  # type: ignore[arg-type]  # a tensor is a float to it
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    must(
        any(bool(gradient.abs().sum() > 0) for gradient in gradients.values()) != algorithm.solves,
        f"{cls.name}: the gradient of the loss must reach some parameter of its groups, and what "
        "is solved needs none",
    )
    must(
        not frozen.keys() & gradients.keys(),
        f"{cls.name}: what is in no group must get no gradient",
    )
    must(equal(frozen, parameters), f"{cls.name}: what is in no group must not move")
    must(not equal(state, model.state_dict()), f"{cls.name}: training must move something")
    must(
        all(p.grad is None for p in teacher.classifier.parameters())
        and equal(zero_shot, teacher.classifier.state_dict()),
        f"{cls.name}: the teacher must stay as it is, without a gradient",
    )


class _OneDevice(TorchDispatchMode):
    """A mode: an operation on tensors of two devices raises BrokenContract, unless it copies."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; raise BrokenContract if its tensors are on two devices."""
        items = tree_iter((args, kwargs))
        # A number may lie anywhere.
        devices = {item.device.type for item in items if isinstance(item, Tensor) and item.ndim}
        must(
            len(devices) < 2 or operation in self.COPIES,
            f"{self.name}: tensors of {operation} must be on one device, not {sorted(devices)}; "
            "what `loss` makes itself belongs on `batch.images.device`",
        )
        return operation(*args, **(kwargs or {}))


def check_devices(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that on another device than the CPU no operation takes tensors of both devices.

    The device is `meta`, whose tensors have no numbers: a loss that looks at numbers is checked
    only up to there.
    """
    algorithm, device = cls(), torch.device("meta")
    if not algorithm.takes_steps:
        return
    on_device = replace(
        teacher,
        w_cls=teacher.w_cls.to(device),
        w_ctx=teacher.w_ctx.to(device),
        classifier=copy.deepcopy(teacher.classifier).to(device),
        device=device,
    )
    batch = batch_for(on_device)
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    autocast = torch.autocast  # knows nothing of `meta`
    on_cpu = mock.patch.object(torch, "autocast", lambda _, **more: autocast("cpu", **more))
    with on_cpu, _OneDevice(cls.name), contextlib.suppress(NotImplementedError, RuntimeError):
        model = algorithm.build(on_device).to(device)
        groups = algorithm.groups(model, OptimConfig())
        freeze_all_but(model, groups)
        optimiser = algorithm.optimiser(groups, OptimConfig())

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss, terms = loss_and_terms(algorithm, model, replace(batch, **tensors), on_device)
            for name, value in {"loss": loss, **terms}.items():
                must(value.device == device, f"{cls.name}: {name} must be on the batch's device")
            loss.backward()
            return loss.detach()

        for step in range(2):
            optimiser.step(closure)  # type: ignore[arg-type]  # a tensor is a float to it
            with torch.no_grad():
                algorithm.after_step(model, step, 2)


def check_solution(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that `solve` gives the same solution twice, to the bit."""
    algorithm = cls()
    if not algorithm.solves:
        return
    models = [started(algorithm, teacher) for _ in range(2)]
    for model in models:
        algorithm.solve(model, teacher)
    must(
        equal(models[0].state_dict(), models[1].state_dict()),
        f"{cls.name}: one problem, one solution",
    )


def check_loss_is_repeatable(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that a loss keeps nothing between two calls but in its module, and draws random numbers
    from the run's seed: two calls on the same batch agree to the bit."""
    algorithm = cls()
    if not algorithm.takes_steps:
        return
    model = started(algorithm, teacher).eval()
    (_, logs), (_, again) = (
        loss_of(algorithm, model, batch_for(teacher), teacher) for _ in range(2)
    )
    must(logs == again, f"{cls.name}: its loss must be the same whenever it is computed")


def check_micro_batches(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that the loss of a batch is the mean over its micro-batches. A loss with
    `couples_items`, such as a contrastive one, gets whole batches: of it check that dividing a
    batch by `batch.in_parts` changes neither loss nor gradient."""
    algorithm = cls()
    if not algorithm.takes_steps:
        return
    model = started(algorithm, teacher).eval()
    whole = batch_for(teacher)
    loss, logs = loss_of(algorithm, model, whole, teacher)
    if algorithm.couples_items:
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        parted, _ = loss_of(algorithm, model, replace(whole, micro_batch=2), teacher)
        parted.backward()
        again = [p.grad for p in model.parameters() if p.grad is not None]
        must(
            torch.allclose(loss, parted, rtol=1e-5, atol=1e-6)
            and all(
                torch.allclose(gradient, in_parts, rtol=1e-3, atol=1e-5)
                for gradient, in_parts in zip(gradients, again, strict=True)
            ),
            f"{cls.name}: a batch in parts must have the whole one's loss and gradient",
        )
        return
    halves = [whole.part(rows) for rows in (slice(0, 3), slice(3, 6))]
    parts = [loss_of(algorithm, model, half, teacher)[1] for half in halves]
    for key, value in logs.items():
        mean = sum(part[key] for part in parts) / 2
        must(
            math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-6),
            f"{cls.name}: {key} must be a mean over the batch: it is {value}, and over halves "
            f"{mean}; if it is none by its nature, set couples_items = True",
        )


def check_bf16(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that the loss and its terms are finite in mixed precision."""
    algorithm = cls()
    if not algorithm.takes_steps:
        return
    model = started(algorithm, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, logs = loss_of(algorithm, model, batch_for(teacher), teacher)
    for key, value in logs.items():
        must(math.isfinite(value), f"{cls.name}: {key} must be finite in bf16")


def check_saved_state(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that a newly built module with the saved state continues as the old one would."""
    algorithm = cls()
    if not algorithm.takes_steps:
        return
    model = started(algorithm, teacher)
    with torch.no_grad():
        for number in range(2):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.01)
            algorithm.after_step(model, number, 10)
        algorithm.after_epoch(model, {"id/val/top1": 0.5, "id/val/nll": 1.0})
    again = algorithm.build(teacher)
    try:
        again.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise BrokenContract(
            f"{cls.name}: its state after some steps must be loaded again: {error}"
        ) from error
    images = batch_for(teacher).images
    for part in (model, again):
        with torch.no_grad():
            algorithm.after_step(part, 2, 10)
    with torch.no_grad():
        logits, restored = (
            algorithm.classifier(part, teacher).eval()(images) for part in (model, again)
        )
    must(
        torch.equal(logits, restored),
        f"{cls.name}: what outlives a step must be a parameter, buffer or submodule of its module",
    )


def check_classifier(cls: type[Algorithm], teacher: Teacher) -> None:
    """Check that the classifier gives logits [images, classes] and features of unit norm and CLIP's
    width (unless `clip_features` is False); with `starts_at_zero_shot` the teacher's logits before
    the first step, to the bit; with `keeps_shape` names and shapes of the teacher's tensors."""
    algorithm = cls()
    if not algorithm.trains and not algorithm.starts_at_zero_shot:
        return  # it is made of other runs, or of a file
    classifier = algorithm.classifier(started(algorithm, teacher), teacher)
    must(isinstance(classifier, Classifier), f"{cls.name}: `classifier` gives a Classifier")
    images = batch_for(teacher).images
    with torch.no_grad():
        features = classifier.eval().features(images)
        logits = classifier.logits(features)
        same = torch.equal(logits, teacher.classifier(images))
    must(
        logits.shape == (len(images), len(teacher.class_names)),
        f"{cls.name}: a logit for each image and class, got {list(logits.shape)}",
    )
    must(
        same or not algorithm.starts_at_zero_shot,
        f"{cls.name}: before training its classifier must be the zero-shot one; if it is another "
        "by its nature, set starts_at_zero_shot = False",
    )
    if classifier.clip_features:
        norms = features.norm(dim=1)
        must(
            features.shape[1] == teacher.w_cls.shape[1]
            and torch.allclose(norms, torch.ones_like(norms), atol=1e-4),
            f"{cls.name}: its features must be of unit norm and of CLIP's width; if they are "
            "others by their nature, set clip_features = False on its classifier",
        )
    ours, theirs = (
        {key: value.shape for key, value in module.state_dict().items()}
        for module in (classifier, teacher.classifier)
    )
    must(
        ours == theirs or not algorithm.keeps_shape,
        f"{cls.name}: its classifier must have the teacher's tensors; if it is another module by "
        "its nature, set keeps_shape = False",
    )


ALGORITHM_LAWS: tuple[Callable[[type[Algorithm], Teacher], None], ...] = (
    check_settings,
    check_what_training_moves,
    check_devices,
    check_solution,
    check_loss_is_repeatable,
    check_micro_batches,
    check_bf16,
    check_saved_state,
    check_classifier,
)
"""Each raises BrokenContract where the law does not hold."""


def check_merge(cls: type[Merge]) -> None:
    """Hold a registered merge, with its fields at their defaults, to every law. Raises
    BrokenContract with what must hold and does not."""
    for law in MERGE_LAWS:
        law(cls)


def check_points(cls: type[Merge]) -> None:
    """Check that each point has a step of its own and a label that begins with the merge's name."""
    merge = cls()
    points = merge.points()
    must(len(points) > 0, f"{cls.name}: it must yield some model")
    for what in ("label", "step"):
        values = [getattr(point, what) for point in points]
        must(
            len(set(values)) == len(values), f"{cls.name}: each {what} must be unique, got {values}"
        )
    for point in points:
        must(
            point.label.startswith(cls.name),
            f"{cls.name}: the label {point.label!r} must begin with the merge's name",
        )
    strange = merge.point_fields - set(cls.model_fields)
    must(not strange, f"{cls.name}: point_fields must be of its fields, not {sorted(strange)}")


def check_merged_models(cls: type[Merge]) -> None:
    """Check that each merged model is a classifier of the same classes, and that neither of the
    models it is made of changes."""
    teacher = built_in_teacher()
    tuned = teacher.new_classifier()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    inputs = [tuned.state_dict(), teacher.classifier.state_dict()]
    before = [copy_tensors(state) for state in inputs]
    images, merge = batch_for(teacher).images, cls()
    for point in merge.points():
        merged = merge.model(point, teacher, tuned)
        with torch.no_grad():
            logits = merged.eval()(images)
        must(
            logits.shape == (len(images), len(teacher.class_names))
            and bool(torch.isfinite(logits).all()),
            f"{point.label}: it must give a finite logit for each image and class",
        )
    must(
        all(equal(then, now) for then, now in zip(before, inputs, strict=True)),
        f"{cls.name}: it must leave the weights that it is given as they are",
    )


MERGE_LAWS: tuple[Callable[[type[Merge]], None], ...] = (
    must_be_plain_settings,
    check_points,
    check_merged_models,
)
"""Each raises BrokenContract where the law does not hold."""


def check_own_methods(model: str) -> list[str]:
    """Hold every algorithm and merge of the user's own to its laws, with the built-in CLIP.

    Raises RequestError with the first mistake of each. Where `model`, the user's, is another CLIP,
    whose tower a method may need, an exception is no mistake but a warning; return the warnings.
    """
    problems, warnings = [], []
    checks: list[tuple[type[Registered], Callable[[Any], None]]] = [
        *((algorithm, check_algorithm) for algorithm in ALGORITHMS.values()),
        *((merge, check_merge) for merge in MERGES.values()),
    ]
    for cls, check in checks:
        if not is_own(cls):
            continue
        where = f"{cls.registry.kind} {cls.name}, in {module_place(cls.__module__.split('.')[0])}"
        try:
            check(cls)
        except RequestError:
            continue  # it refuses its defaults, such as a path that is empty
        except BrokenContract as error:
            problems.append(f"{where}: {str(error).removeprefix(f'{cls.name}: ')}")
        except Exception as error:  # whatever their code raises
            text = f"{where}: {reason(error, cls.__module__)}"
            if model in BUILTIN:
                problems.append(text)
            else:
                warnings.append(f"{text}; tried with the built-in CLIP, not with {model}")
    if problems:
        raise RequestError("\n".join(problems))
    return warnings


@dataclass(frozen=True)
class OpenFamily:
    """A family with its data, as a run gets it."""

    family: Family
    config: DataConfig
    data: FamilyData

    @property
    def name(self) -> str:
        """The name of the family."""
        return self.family.name

    def in_distribution(self) -> Mapping[str, Split]:
        """Return train, and val and test if the family has them."""
        splits = self.data.splits
        return {name: splits[name] for name in IN_DISTRIBUTION if name in splits}


def check_family(family: Family, config: DataConfig | None = None) -> None:
    """Open a registered family and hold it to every law.

    `config` may say more than the family's name, such as `DataConfig(family="mine", root="...")`.
    Raises BrokenContract with what must hold and does not, RequestError when it does not open.
    """
    case = open_family(family, config or DataConfig(family=family.name))
    for law in FAMILY_LAWS:
        law(case)


def open_family(family: Family, config: DataConfig) -> OpenFamily:
    """Open a family's data for the laws. Raises as `check_family` does."""
    name = family.name
    must(FAMILIES.get(name) is family, f"{name}: it must be registered under its name")
    return OpenFamily(family, config, open_data(config))


def check_family_description(case: OpenFamily) -> None:
    """Check that a family has two classes or more, names of their own unless shared ones are
    declared, a digest, and defaults that make a config."""
    names = case.data.class_names
    shared = {name for name, count in Counter(names).items() if count > 1}
    must(
        len(names) > 1 and shared <= set(case.family.shared_names),
        f"{case.name}: two or more classes, each named once, or the name in shared_names",
    )
    must(
        len(case.data.digest) == 64 and set(case.data.digest) <= set("0123456789abcdef"),
        f"{case.name}: digest must be a sha256 in hex, got {case.data.digest!r}",
    )
    config = trial_config({"data": {"family": case.name}, "algorithm": "fine_tune"})
    must(config.data.family == case.name, f"{case.name}: its defaults must leave the family")


def check_items(case: OpenFamily) -> None:
    """Check that each item has its own id, a unit, and a label that can occur in its split."""
    for name, split in case.data.splits.items():
        where = f"{case.name}, {name}"
        problem = wrong_items(split, len(case.data.class_names))
        must(problem is None, f"{where}: {problem}")
        must(len(set(split.ids)) == len(split.ids), f"{where}: each id must be unique")


def check_alike(case: OpenFamily) -> None:
    """Check that each group of `alike` holds its own class, and no class is in two groups."""
    every = set(range(len(case.data.class_names)))
    for name, split in case.data.splits.items():
        where = f"{case.name}, {name}"
        grouped = [number for group in split.alike.values() for number in group]
        allowed = every if split.classes is None else set(split.classes)
        must(
            set(split.alike) <= allowed and set(grouped) <= every,
            f"{where}: alike must be of its classes, and of classes of the family",
        )
        must(
            len(set(grouped)) == len(grouped)
            and all(number in group for number, group in split.alike.items()),
            f"{where}: a group of alike must hold the class it is under, and no class of another",
        )


def check_derived(case: OpenFamily) -> None:
    """Check that derived sets are made of splits that are measured, and have items."""
    measured = case.data.measured()
    for name, derived in case.data.derived.items():
        must(
            len(derived.of) > 0 and set(derived.of) <= set(measured),
            f"{case.name}: {name} must be of splits that are measured",
        )
        if derived.classes is not None:
            occurring = {label for of in derived.of for label in measured[of].labels.tolist()}
            must(
                bool(occurring & set(derived.classes))
                and len(set(derived.classes)) == len(derived.classes),
                f"{case.name}: {name} must be of some classes of {', '.join(derived.of)}, "
                "each once",
            )


def check_metric_names(case: OpenFamily) -> None:
    """Check that no derived set, extra or mean hides a shift, the mean or a validation set, that
    groups name each item, and that further metrics exist."""
    data, family = case.data, case.family
    shifts = [f"ood/{name}" for name in data.shifts]
    named = [*shifts, *(f"ood/{name}" for name in data.extras), *data.derived, *data.own_means]
    must(
        len(named) == len({*named, "id/val", "id/test"}) - 2,
        f"{case.name}: shifts, extras, derived and own_means need different names",
    )
    reserved = {f"ood/{name}" for name in RESERVED}
    must(
        not reserved & {*shifts, *data.derived, *data.own_means} and "mean" not in data.extras,
        f"{case.name}: nothing but an extra is called {' or '.join(RESERVED)}, and no extra mean",
    )
    for name, of in data.own_means.items():
        must(len(of) > 0 and {*of} <= {*shifts}, f"{case.name}: {name} must be a mean of shifts")
    for name, split in case.data.splits.items():
        must(
            split.groups is None or len(split.groups) == len(split),
            f"{case.name}, {name}: a group for each item, or none at all",
        )
    must(
        set(family.metrics) <= set(FURTHER_METRICS),
        f"{case.name}: its metrics must be of {', '.join(FURTHER_METRICS)}",
    )
    must(
        family.validated_by in (*METRICS, *family.metrics),
        f"{case.name}: validated_by must be a metric that it is measured by",
    )
    must(
        family.ranked_by in ("top1", *family.metrics),
        f"{case.name}: ranked_by must be top1 or one of its metrics",
    )


def check_units(case: OpenFamily) -> None:
    """Check that no unit is in two splits in distribution: no test image was trained on."""
    seen: set[str] = set()
    for name, split in case.in_distribution().items():
        twice = seen & set(split.units)
        must(not twice, f"{case.name}, {name}: units of another split: {sorted(twice)[:3]}")
        seen |= set(split.units)


def check_classes(case: OpenFamily) -> None:
    """Check that train, val and test have every class; of `uneven` official splits only train."""
    for name, split in case.in_distribution().items():
        problem = missing_classes(case.data, name, split)
        must(problem is None, f"{case.name}, {name}: {problem}")


def check_training_views(case: OpenFamily) -> None:
    """Check that training views depend on seed, epoch and row, not on batch or global state."""
    split = case.data.train
    last = len(split) - 1
    views = split.views([0, 1, last], transform=TRANSFORM, seed=5, epoch=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        reversed_ends = split.views([last, 0], transform=TRANSFORM, seed=5, epoch=2)
    size = TRANSFORM.size
    must(
        views.shape == (3, 3, size, size) and views.dtype == torch.uint8,
        f"{case.name}: views must be uint8 [B, 3, {size}, {size}], got {views.dtype} "
        f"{list(views.shape)}",
    )
    must(
        torch.equal(views[[2, 0]], reversed_ends),
        f"{case.name}: a training view must depend on seed, epoch and index alone",
    )


def check_evaluation_views(case: OpenFamily) -> None:
    """Check that an evaluation view, which has no seed, is the same in every epoch."""
    for name, split in case.data.splits.items():
        ends = [0, len(split) - 1]
        first, later = (split.views(ends, transform=TRANSFORM, seed=None, epoch=e) for e in (0, 7))
        must(torch.equal(first, later), f"{case.name}, {name}: the evaluation view must be fixed")


def check_reopened(case: OpenFamily) -> None:
    """Check that data opened again, with a fraction of train, have equal digest and tests."""
    less = open_data(case.config.model_copy(update={"train_fraction": 0.5}))
    must(less.digest == case.data.digest, f"{case.name}: the same data, the same digest")
    for name, split in case.data.measured().items():
        same = less.measured()[name].ids == split.ids
        must(same, f"{case.name}, {name}: the same data, the same split, whatever trains")
    must(
        set(less.train.ids) <= set(case.data.train.ids),
        f"{case.name}: a fraction of train must be a part of it",
    )


FAMILY_LAWS: tuple[Callable[[OpenFamily], None], ...] = (
    check_family_description,
    check_items,
    check_alike,
    check_derived,
    check_metric_names,
    check_units,
    check_classes,
    check_training_views,
    check_evaluation_views,
    check_reopened,
)
"""Each raises BrokenContract where the law does not hold."""
