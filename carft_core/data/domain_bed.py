"""DomainBed's image sets with a domain held out, divided and measured as DomainBed does."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from carft_core.data.base import Family, FamilyData
from carft_core.data.class_folders import problems_of
from carft_core.data.data_root import data_root, find_folders, readable
from carft_core.data.domain_bed_folders import LAYOUT, SETS, classes_of, names_of
from carft_core.data.domain_bed_split import divided
from carft_core.data.domain_bed_survey import look_domain_bed
from carft_core.data.folder_split import FolderSplit
from carft_core.data.folder_tree import refusal
from carft_core.data.held_out import check_held_out
from carft_core.data.manifest import Manifest, read_manifest
from carft_core.data.photo_views import read_plain
from carft_core.data.subset import Subset
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

CRITERION = "mean_group_top1"
"""DomainBed's training-domain validation: each domain that trains counts the same."""

UNEVEN = "a domain is divided without regard to classes, and some have few images"


class Domains(FolderSplit):
    """The images of all domains, one domain after another, each in torchvision's order."""

    def __init__(self, folders: Mapping[str, Path], ids: Sequence[str], labels: Tensor) -> None:
        """`ids` are `<domain>/<class>/<image>`; `folders` say where each domain lies."""
        groups = [item.partition("/")[0] for item in ids]
        super().__init__(Path(), ids, labels, None, read=read_plain, groups=groups)
        self._folders = folders

    def _image(self, index: int) -> Image.Image:
        domain, _, path = self.ids[index].partition("/")
        return self._read(self._folders[domain] / path)


class _Found(NamedTuple):
    """A set as it lies on the disk, whatever is held out of it."""

    images: Domains
    counts: Mapping[str, int]
    """Images of each domain."""
    digest: str
    notes: tuple[str, ...]


def open_domain_bed(config: DataConfig) -> FamilyData:
    """Open the set of `config.family` below `data.root` with `data.test_domain` held out.

    `train` is the greater part of each other domain, and `val` their smaller parts; a
    `data.val_domain` does not train either, and then its greater part is `val`. The held-out domain
    is measured on its greater part, as DomainBed does, besides on the smaller one and on both.

    Raises RequestError for a domain that the set does not have, naming every folder that is
    missing, or every mistake in those that are there. Images are not decoded here: a broken one
    raises when its turn comes.
    """
    known = SETS[config.family]
    test = check_held_out(config, known.domains)
    places = find_folders(data_root(config, known.folders), known.folders)
    with readable():
        found = _opened(config.family, tuple(places.items()))
    greater, smaller = _halves(found.counts, config)
    training = [name for name in known.domains if name not in (test, config.val_domain)]
    validating = (
        [smaller[name] for name in training]
        if config.val_domain is None
        else [greater[config.val_domain]]
    )
    shift, out = (_measured(found.images, part[test]) for part in (greater, smaller))
    return FamilyData(
        class_names=names_of(config.family),
        train=Subset(found.images, [at for name in training for at in greater[name]]),
        val=Subset(found.images, [at for part in validating for at in part]),
        test=None,
        shifts={test: shift},
        extras={f"{test}_out": out},
        unions={f"{test}_all": (test, f"{test}_out")},
        uneven=UNEVEN,
        digest=found.digest,
        notes=found.notes,
    )


def _halves(
    counts: Mapping[str, int], config: DataConfig
) -> tuple[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]]:
    """The greater and the smaller part of each domain, as places in the whole set."""
    greater, smaller, first = {}, {}, 0
    for environment, (domain, count) in enumerate(counts.items()):
        parts = divided(
            count,
            config.val_fraction,
            trial_seed=config.split_number,
            environment=environment,
        )
        if not parts.kept:
            raise RequestError(
                f"data.val_fraction: {config.val_fraction:g} of the {count} images of {domain} "
                "keeps none back; give a greater fraction"
            )
        greater[domain] = [first + at for at in parts.train]
        smaller[domain] = [first + at for at in parts.kept]
        first += count
    return greater, smaller


def _measured(images: Domains, places: Sequence[int]) -> Subset:
    """A part of one domain, which has no groups to tell apart."""
    part = Subset(images, places)
    part.groups = None
    return part


@functools.lru_cache(maxsize=2)
def _opened(family: str, places: tuple[tuple[str, Path], ...]) -> _Found:
    manifests = {domain: read_manifest(folder) for domain, folder in places}
    classes = classes_of(family)
    problems = [
        f"{folder}: {problem}"
        for domain, folder in places
        for problem in problems_of(folder, manifests[domain], classes, layout=LAYOUT)
    ]
    if problems:
        raise RequestError(refusal(f"data.root: {family} cannot be used:", problems))
    ids = [f"{domain}/{path}" for domain, found in manifests.items() for path in found.paths]
    # Every domain has every class folder and no other, so they count in the classes' order.
    counts = torch.tensor([[*found.counts.values()] for found in manifests.values()])
    labels = torch.arange(len(classes)).repeat(len(places)).repeat_interleave(counts.flatten())
    return _Found(
        Domains(dict(places), ids, labels),
        {domain: len(found.paths) for domain, found in manifests.items()},
        _digest(family, manifests),
        tuple(_notes(family, manifests)),
    )


def _notes(family: str, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    for domain, folder in SETS[family].folders.items():
        here = len(manifests[domain].paths)
        if here != folder.images:
            yield (
                f"{family}: {domain} has {here:,} images here, {folder.images:,} as published; "
                "its numbers are not those of papers"
            )


def _digest(family: str, manifests: Mapping[str, Manifest]) -> str:
    """Over the classes, and each domain's images by path and size; whatever is held out."""
    digest = hashlib.sha256(f"{family}/1\n".encode())
    digest.update("\0".join(classes_of(family)).encode())
    for domain, found in manifests.items():
        digest.update(f"\n{domain}\0{found.digest}".encode())
    return digest.hexdigest()


def _family(name: str, contexts: str, *, lr: float, steps_per_epoch: int = 300) -> Family:
    known = SETS[name]
    return Family(
        name=name,
        summary=f"DomainBed's {known.title} under data.root, with data.test_domain held out",
        open=open_domain_bed,
        defaults={
            "data.augmentation": "domainbed",
            "data.balanced": True,
            "data.val_fraction": 0.2,
            "prompts.classes": "photo",
            "prompts.contexts": contexts,
            "optim.lr": lr,
            "optim.steps": 5000,
            "optim.steps_per_epoch": steps_per_epoch,
            "optim.batch_size": 32,
            "keep.result": "best_val",
        },
        domains=known.domains,
        folders=known.folders,
        metrics=(CRITERION, "worst_group_top1"),
        validated_by=CRITERION,
        look=look_domain_bed,
    )


# Rates: `scripts.sh` of thuml/CLIPood, which trains CLIP on these sets by AdamW with cosine decay
# and the weight decay 0.1. Steps and batch: DomainBed's `datasets.py` and `hparams_registry.py`.
PACS = _family("pacs", "known_domain_words", lr=5e-6)
VLCS = _family("vlcs", "openai", lr=5e-6)
OFFICE_HOME = _family("office_home", "known_domain_words", lr=1e-5)
TERRA_INCOGNITA = _family("terra_incognita", "openai", lr=5e-6)
DOMAIN_NET = _family("domain_net", "known_domain_words", lr=1e-5, steps_per_epoch=1000)
DOMAIN_BED = (PACS, VLCS, OFFICE_HOME, TERRA_INCOGNITA, DOMAIN_NET)
