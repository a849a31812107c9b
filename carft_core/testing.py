"""The laws that hold for every algorithm, merge and family, for the tests of who adds one."""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ValidationError

from carft_core.algorithms import ALGORITHMS, Algorithm, Batch
from carft_core.clip import ImageClassifier, open_model
from carft_core.config import trial_config
from carft_core.data import FAMILIES, Family, FamilyData, Split, Transform, prepare
from carft_core.data.base import RESERVED, DataConfig
from carft_core.evaluate import FURTHER_METRICS, METRICS
from carft_core.merges import MERGES, Merge
from carft_core.prompts import class_weights, context_weights, template_set, text_features
from carft_core.teacher import Teacher


class BrokenContract(AssertionError):
    """A law does not hold; a test that lets it through has failed."""


def must(holds: bool, what: str) -> None:
    """Raise BrokenContract, saying what must be, unless it holds."""
    if not holds:
        raise BrokenContract(what)


def must_be_registered(registry: Mapping[str, object], name: str, thing: object) -> None:
    """A sweep file finds it by its name."""
    must(registry.get(name) is thing, f"{name}: it must be registered under its name")


def must_be_plain_settings(cls: type[BaseModel], name: str) -> None:
    """All fields have defaults, none can be changed, and nothing is lost in JSON and pickle."""
    required = [field for field, info in cls.model_fields.items() if info.is_required()]
    must(not required, f"{name}: every field must have a default; these lack one: {required}")
    settings = cls()
    for field in cls.model_fields:
        try:
            setattr(settings, field, getattr(settings, field))
        except ValidationError:
            continue
        raise BrokenContract(f"{name}: it must be frozen, but {field} can be set")
    again = cls.model_validate(json.loads(settings.model_dump_json()))
    must(again == settings, f"{name}: its fields must survive JSON; got {again!r}")
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


def check_algorithm(cls: type[Algorithm], teacher: Teacher | None = None) -> None:
    """Hold a registered algorithm, with its fields at their defaults, to every law.

    On the CPU, with a few random images of 32 pixels; `teacher` has three classes and is by
    default made of the built-in CLIP. Raises BrokenContract with what must hold and does not.
    """
    for law in ALGORITHM_LAWS:
        law(cls, teacher or built_in_teacher())


@functools.cache
def built_in_teacher() -> Teacher:
    """The built-in CLIP as the zero-shot classifier of three things."""
    clip = open_model("builtin")
    contexts = template_set("simple")
    cpu = torch.device("cpu")
    w_raw = text_features(clip, contexts, ["anchor", "bell", "cat"], device=cpu)
    return Teacher(clip, class_weights(w_raw), context_weights(w_raw), contexts, cpu)


def batch_for(algorithm: Algorithm, teacher: Teacher) -> Batch:
    """Six random images of three classes, with what the algorithm asks of the teacher."""
    images = torch.randn(len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = teacher.features(images) if "features" in algorithm.teacher_quantities else None
    return Batch(images, torch.tensor(LABELS), 0.0, features)


def it_is_registered_frozen_and_survives_json_and_pickle(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """A sweep file speaks of it by its name, and workers get it whole."""
    del teacher
    must_be_registered(ALGORITHMS, cls.name, cls)
    must_be_plain_settings(cls, cls.name)


def the_loss_is_finite_and_its_gradient_reaches_the_student_only(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """A step of training moves what is said to train, and leaves the teacher as it was."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher)
    before = {key: value.clone() for key, value in teacher.classifier.state_dict().items()}
    terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    loss.backward()
    loss = loss.detach()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    must(bool(torch.isfinite(loss)), f"{cls.name}: the loss must be finite, and is {float(loss)}")
    trained = [p for _, p in algorithm.trainable(student) if p.requires_grad]
    must(bool(trained), f"{cls.name}: some parameter must be trainable")
    must(
        any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained),
        f"{cls.name}: the gradient of the loss must reach some trainable parameter",
    )
    after = teacher.classifier.state_dict()
    must(
        all(p.grad is None for p in teacher.classifier.parameters())
        and all(torch.equal(before[key], after[key]) for key in before),
        f"{cls.name}: the teacher must stay as it is, without a gradient",
    )


def two_calls_on_the_same_batch_agree_to_the_bit(cls: type[Algorithm], teacher: Teacher) -> None:
    """A loss keeps nothing between two calls, and draws nothing at random."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher).eval()
    one, two = (algorithm.terms(student, batch_for(algorithm, teacher), teacher) for _ in range(2))
    must(
        {key: float(term.value.detach()) for key, term in one.items()}
        == {key: float(term.value.detach()) for key, term in two.items()},
        f"{cls.name}: its terms must be the same whenever they are computed",
    )


def a_loss_over_a_batch_is_the_mean_over_its_micro_batches(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """Else `loss_depends_on_batch` says so, as for a contrastive loss, and the micro-batch is a
    part of the run's identity."""
    algorithm = cls()
    if not algorithm.trains or algorithm.loss_depends_on_batch:
        return
    student = algorithm.student(teacher).eval()
    whole = batch_for(algorithm, teacher)
    features = whole.teacher_features
    halves = [
        Batch(whole.images[p], whole.labels[p], 0.0, None if features is None else features[p])
        for p in (slice(0, 3), slice(3, 6))
    ]
    terms = algorithm.terms(student, whole, teacher)
    parts = [algorithm.terms(student, half, teacher) for half in halves]
    for key, term in terms.items():
        got = float(term.value.detach())
        mean = sum(float(part[key].value.detach()) for part in parts) / 2
        must(
            math.isclose(got, mean, rel_tol=1e-6, abs_tol=1e-6),
            f"{cls.name}: {key} must be a mean over the batch: it is {got}, and over halves "
            f"{mean}; if it is none by its nature, set loss_depends_on_batch = True",
        )


def the_loss_is_finite_in_bf16(cls: type[Algorithm], teacher: Teacher) -> None:
    """Training in mixed precision gives numbers."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    for key, term in terms.items():
        must(bool(torch.isfinite(term.value)), f"{cls.name}: {key} must be finite in bf16")


def what_is_evaluated_starts_as_the_zero_shot_classifier(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """Before the first step its classifier is the teacher's, to the bit."""
    algorithm = cls()
    classifier = algorithm.classifier(algorithm.student(teacher), teacher)
    must(
        isinstance(classifier, ImageClassifier),
        f"{cls.name}: `classifier` gives an ImageClassifier",
    )
    images = batch_for(algorithm, teacher).images
    with torch.no_grad():
        same = torch.equal(classifier.eval()(images), teacher.classifier(images))
    must(same, f"{cls.name}: before training its classifier must be the zero-shot one")


ALGORITHM_LAWS: tuple[Callable[[type[Algorithm], Teacher], None], ...] = (
    it_is_registered_frozen_and_survives_json_and_pickle,
    the_loss_is_finite_and_its_gradient_reaches_the_student_only,
    two_calls_on_the_same_batch_agree_to_the_bit,
    a_loss_over_a_batch_is_the_mean_over_its_micro_batches,
    the_loss_is_finite_in_bf16,
    what_is_evaluated_starts_as_the_zero_shot_classifier,
)
"""Each raises BrokenContract; its name is what holds."""


def check_merge(cls: type[Merge]) -> None:
    """Hold a registered merge, with its fields at their defaults, to every law.

    Raises BrokenContract with what must hold and does not.
    """
    for law in MERGE_LAWS:
        law(cls)


def a_merge_is_registered_frozen_and_survives_json_and_pickle(cls: type[Merge]) -> None:
    """A sweep file speaks of it by its name, and workers get it whole."""
    must_be_registered(MERGES, cls.name, cls)
    must_be_plain_settings(cls, cls.name)


def its_points_are_known_apart(cls: type[Merge]) -> None:
    """Each has a label that begins with the merge's name, and a step of its own."""
    points = cls().points()
    must(len(points) > 0, f"{cls.name}: it must yield some model")
    for what in ("label", "step"):
        given = [getattr(point, what) for point in points]
        must(len(set(given)) == len(given), f"{cls.name}: each {what} must be unique, got {given}")
    for point in points:
        must(
            point.label.startswith(cls.name),
            f"{cls.name}: the label {point.label!r} must begin with the merge's name",
        )


def a_merge_keeps_names_shapes_types_and_its_inputs(cls: type[Merge]) -> None:
    """What it yields loads into the same model, and what it got is as it was."""
    generator = torch.Generator().manual_seed(0)
    zero_shot, tuned = (
        {
            "a": torch.randn(3, 2, generator=generator),
            "n": torch.tensor(count),
            "h": torch.randn(2, generator=generator).half(),
        }
        for count in (1, 5)
    )
    kept = [{key: value.clone() for key, value in s.items()} for s in (zero_shot, tuned)]
    merge = cls()
    for point in merge.points():
        state = merge.state(point, zero_shot, tuned)
        must(
            {key: (value.shape, value.dtype) for key, value in state.items()}
            == {key: (value.shape, value.dtype) for key, value in tuned.items()},
            f"{point.label}: names, shapes and types must be the tuned model's",
        )
    for state, before in zip((zero_shot, tuned), kept, strict=True):
        must(
            all(torch.equal(state[key], before[key]) for key in before),
            f"{cls.name}: it must leave the weights that it is given as they are",
        )


MERGE_LAWS: tuple[Callable[[type[Merge]], None], ...] = (
    a_merge_is_registered_frozen_and_survives_json_and_pickle,
    its_points_are_known_apart,
    a_merge_keeps_names_shapes_types_and_its_inputs,
)
"""Each raises BrokenContract; its name is what holds."""


TRANSFORM = Transform(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True)
class Opened:
    """A family with its data, as a run gets it."""

    family: Family
    config: DataConfig
    data: FamilyData

    @property
    def name(self) -> str:
        """The family's."""
        return self.family.name

    def splits(self) -> Mapping[str, Split]:
        """In distribution by name, then shifts and extras by that of their metrics."""
        others = {**self.data.shifts, **self.data.extras}
        return {**self.in_distribution(), **{f"ood/{name}": it for name, it in others.items()}}

    def in_distribution(self) -> Mapping[str, Split]:
        """Train, and val and test where there are such."""
        data = self.data
        found = {"train": data.train, "val": data.val, "test": data.test}
        return {name: split for name, split in found.items() if split is not None}


def check_family(family: Family, config: DataConfig | None = None) -> None:
    """Open a registered family and hold it to every law.

    `config` says more of it than its name, such as `DataConfig(family="mine", root="...")`.
    Raises BrokenContract with what must hold and does not, RequestError when it does not open.
    """
    opened = opened_for_check(family, config or DataConfig(family=family.name))
    for law in FAMILY_LAWS:
        law(opened)


def opened_for_check(family: Family, config: DataConfig) -> Opened:
    """What the laws look at. Raises as `check_family` does."""
    must_be_registered(FAMILIES, family.name, family)
    return Opened(family, config, prepare(config))


def it_describes_itself_and_its_defaults_make_a_config(opened: Opened) -> None:
    """Two classes at least, each with its own name unless others are declared, and a digest."""
    names = opened.data.class_names
    shared = {name for name, count in Counter(names).items() if count > 1}
    must(
        len(names) > 1 and shared <= set(opened.family.shared_names),
        f"{opened.name}: two or more classes, each named once, or the name in shared_names",
    )
    must(
        len(opened.data.digest) == 64 and set(opened.data.digest) <= set("0123456789abcdef"),
        f"{opened.name}: digest must be a sha256 in hex, got {opened.data.digest!r}",
    )
    config = trial_config({"data": {"family": opened.name}, "algorithm": "fine_tune"})
    must(config.data.family == opened.name, f"{opened.name}: its defaults must leave the family")


def items_have_unique_names_a_unit_and_a_label_of_the_family(opened: Opened) -> None:
    """And labels lie in the classes that the split says can occur."""
    for name, split in opened.splits().items():
        where = f"{opened.name}, {name}"
        must(
            len(split) == len(split.ids) == len(split.units) == len(split.labels) > 0,
            f"{where}: as many ids as units and labels, and one at least",
        )
        must(len(set(split.ids)) == len(split.ids), f"{where}: each id must be unique")
        must(split.labels.dtype == torch.int64, f"{where}: labels must be int64")
        occurring = set(split.labels.tolist())
        allowed = range(len(opened.data.class_names)) if split.classes is None else split.classes
        must(
            occurring <= set(allowed) <= set(range(len(opened.data.class_names))),
            f"{where}: labels must be indices of classes, those of `classes` if it is given",
        )


def classes_that_count_as_one_are_of_one_group(opened: Opened) -> None:
    """Each group of `alike` holds the class that stands for it, and no class is in two groups."""
    every = set(range(len(opened.data.class_names)))
    for name, split in opened.splits().items():
        where = f"{opened.name}, {name}"
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


def parts_of_test_are_some_of_its_classes(opened: Opened) -> None:
    """Otherwise there would be nothing to measure."""
    test = opened.data.test
    tested = set() if test is None else set(test.labels.tolist())
    for name, classes in opened.data.parts.items():
        must(
            bool(tested & set(classes)) and len(set(classes)) == len(classes),
            f"{opened.name}: the part {name} must be some classes of test, each once",
        )


def what_is_measured_besides_has_names_and_metrics_of_its_own(opened: Opened) -> None:
    """No extra or union hides a shift, none of these the mean or a validation set; groups name
    each item; further metrics are known."""
    data, family = opened.data, opened.family
    known = {**data.shifts, **data.extras}
    must(
        len(known) == len(data.shifts) + len(data.extras) and not set(data.unions) & set(known),
        f"{opened.name}: shifts, extras and unions need different names",
    )
    measured = {*data.shifts, *data.unions}
    must(
        not measured & set(RESERVED) and "mean" not in data.extras,
        f"{opened.name}: no shift or union is called {' or '.join(RESERVED)}, and no extra mean",
    )
    for name, parts in data.unions.items():
        must(set(parts) <= set(known), f"{opened.name}: {name} must be of shifts and extras")
    for name, split in opened.splits().items():
        must(
            split.groups is None or len(split.groups) == len(split),
            f"{opened.name}, {name}: a group for each item, or none at all",
        )
    must(
        set(family.metrics) <= set(FURTHER_METRICS),
        f"{opened.name}: its metrics must be of {', '.join(FURTHER_METRICS)}",
    )
    must(
        family.validated_by in (*METRICS, *family.metrics),
        f"{opened.name}: validated_by must be a metric that it is measured by",
    )
    must(
        family.ranked_by in ("top1", *family.metrics),
        f"{opened.name}: ranked_by must be top1 or one of its metrics",
    )


def no_unit_stands_in_two_in_distribution_splits(opened: Opened) -> None:
    """Nothing is tested that was trained on."""
    seen: set[str] = set()
    for name, split in opened.in_distribution().items():
        twice = seen & set(split.units)
        must(not twice, f"{opened.name}, {name}: units of another split: {sorted(twice)[:3]}")
        seen |= set(split.units)


def every_class_is_trained_validated_and_tested(opened: Opened) -> None:
    """A class that is missing in one of them would be scored for nothing.

    Where official splits are `uneven` it is trained at least.
    """
    everything = set(range(len(opened.data.class_names)))
    for name, split in opened.in_distribution().items():
        if opened.data.uneven and name != "train":
            continue
        missing = everything - set(split.labels.tolist())
        must(not missing, f"{opened.name}, {name}: no image of the classes {sorted(missing)}")


def a_view_depends_on_seed_epoch_and_index_alone(opened: Opened) -> None:
    """Neither on the batch nor on global random state."""
    split = opened.data.train
    last = len(split) - 1
    one = split.views([0, 1, last], transform=TRANSFORM, seed=5, epoch=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        other = split.views([last, 0], transform=TRANSFORM, seed=5, epoch=2)
    size = TRANSFORM.size
    must(
        one.shape == (3, 3, size, size) and one.dtype == torch.float32,
        f"{opened.name}: views must be float32 [B, 3, {size}, {size}], got {one.dtype} "
        f"{list(one.shape)}",
    )
    must(bool(torch.isfinite(one).all()), f"{opened.name}: views must be finite")
    must(
        torch.equal(one[[2, 0]], other),
        f"{opened.name}: a training view must depend on seed, epoch and index alone",
    )


def the_evaluation_view_is_fixed(opened: Opened) -> None:
    """With seed None every epoch sees the same."""
    for name, split in opened.splits().items():
        ends = [0, len(split) - 1]
        one, two = (split.views(ends, transform=TRANSFORM, seed=None, epoch=e) for e in (0, 7))
        must(torch.equal(one, two), f"{opened.name}, {name}: the evaluation view must be fixed")


def opened_again_it_is_the_same_and_a_fraction_of_it_has_the_same_test(opened: Opened) -> None:
    """The digest knows the content, not the moment."""
    less = prepare(opened.config.model_copy(update={"train_fraction": 0.5}))
    must(less.digest == opened.data.digest, f"{opened.name}: the same data, the same digest")
    for name, split in opened.data.measured().items():
        same = less.measured()[name].ids == split.ids
        must(same, f"{opened.name}, {name}: the same data, the same split, whatever trains")
    must(
        set(less.train.ids) <= set(opened.data.train.ids),
        f"{opened.name}: a fraction of train must be a part of it",
    )


FAMILY_LAWS: tuple[Callable[[Opened], None], ...] = (
    it_describes_itself_and_its_defaults_make_a_config,
    items_have_unique_names_a_unit_and_a_label_of_the_family,
    classes_that_count_as_one_are_of_one_group,
    parts_of_test_are_some_of_its_classes,
    what_is_measured_besides_has_names_and_metrics_of_its_own,
    no_unit_stands_in_two_in_distribution_splits,
    every_class_is_trained_validated_and_tested,
    a_view_depends_on_seed_epoch_and_index_alone,
    the_evaluation_view_is_fixed,
    opened_again_it_is_the_same_and_a_fraction_of_it_has_the_same_test,
)
"""Each raises BrokenContract; its name is what holds."""
