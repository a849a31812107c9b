"""What holds for every family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from carft_core.config import trial_config
from carft_core.config_sections import DataConfig
from carft_core.contracts.base import must, must_be_registered
from carft_core.data import FAMILIES, Family, FamilyData, Split, Transform
from carft_core.data.shift_names import RESERVED
from carft_core.data.splits import prepare
from carft_core.evaluate import FURTHER_METRICS, METRICS

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
