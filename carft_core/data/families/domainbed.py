"""DomainBed's five benchmarks: domains of which one is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from carft_sweep.carft_core.data.base import (
    DataConfig,
    DataFolder,
    Derived,
    Family,
    FamilyData,
    Files,
    Split,
    cache_open,
    check_held_out,
)
from carft_sweep.carft_core.data.class_names import class_list, plain_name
from carft_sweep.carft_core.data.folders import (
    count_notes,
    data_root,
    find_folders,
    read_folders,
    readable,
)
from carft_sweep.carft_core.data.images import read_plain
from carft_sweep.carft_core.data.listing import Manifest
from carft_sweep.carft_core.errors import RequestError


class Parts(NamedTuple):
    """Two parts of a domain: places of images in the order on disk, in DomainBed's drawn order."""

    train: tuple[int, ...]
    """The greater part, DomainBed's `in`."""
    kept: tuple[int, ...]
    """The smaller part, DomainBed's `out`."""


def divided(count: int, fraction: float, *, trial_seed: int, environment: int) -> Parts:
    """Divide the `count` images of a domain into two parts, `int(count * fraction)` in the smaller
    one.

    `environment` is the domain's place in DomainBed's order. Equal to the order of `split_dataset`
    in `domainbed/lib/misc.py` as `domainbed/scripts/train.py` calls it for a domain that trains;
    the stream of `RandomState` is frozen.
    """
    order = np.arange(count)
    np.random.RandomState(seed_hash(trial_seed, environment)).shuffle(order)
    places = tuple(order.tolist())
    kept = int(count * fraction)
    return Parts(places[kept:], places[:kept])


def seed_hash(*of: object) -> int:
    """Return a seed below 2**31, hashed from the texts of the arguments. Source:
    `domainbed/lib/misc.py`."""
    return int(hashlib.md5(str(of).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def class_folders(family: str) -> tuple[str, ...]:
    """Return the names of the class folders in torchvision's order; a label is an index into it."""
    return class_list(f"domainbed/{family}")


def _folders(root: str, origin: str, counts: Mapping[str, int]) -> Mapping[str, DataFolder]:
    """Return the folders of a set by domain (DomainBed's environment in small letters, with `_` for
    a space), from the number of images of each environment (`counts`). `origin` says where to get
    the set; `root` in small letters is the family's name."""
    folders = {
        environment.replace(" ", "_").lower(): DataFolder(
            # Mirrors of Office-Home write the space in other ways.
            tuple(
                dict.fromkeys(f"{root}/{environment.replace(' ', as_)}" for as_ in (" ", "_", ""))
            ),
            "<class>/<image>",
            origin,
            images,
            class_folders(root.lower()),
        )
        for environment, images in counts.items()
    }
    return MappingProxyType(folders)


FOLDERS: Mapping[str, Mapping[str, DataFolder]] = MappingProxyType(
    {
        "pacs": _folders(
            "PACS",
            "https://domaingeneralization.github.io",
            {"art_painting": 2_048, "cartoon": 2_344, "photo": 1_670, "sketch": 3_929},
        ),
        "vlcs": _folders(
            "VLCS",
            "https://github.com/facebookresearch/DomainBed",
            {"Caltech101": 1_415, "LabelMe": 2_656, "SUN09": 3_282, "VOC2007": 3_376},
        ),
        "office_home": _folders(
            "office_home",
            "https://www.hemanthdv.org/officeHomeDataset.html",
            {"Art": 2_427, "Clipart": 4_365, "Product": 4_439, "Real World": 4_357},
        ),
        "terra_incognita": _folders(
            "terra_incognita",
            "https://lila.science/datasets/caltech-camera-traps",
            {
                "location_100": 4_879,
                "location_38": 9_767,
                "location_43": 4_020,
                "location_46": 6_122,
            },
        ),
        "domain_net": _folders(
            "domain_net",
            "https://ai.bu.edu/M3SDA",
            {
                "clipart": 48_129,
                "infograph": 51_605,
                "painting": 72_266,
                "quickdraw": 172_500,
                "real": 172_947,
                "sketch": 69_128,
            },
        ),
    }
)
"""By family and domain. Folders and their order, which decides a domain's split:
`domainbed/datasets.py` of facebookresearch/DomainBed. Counts: its `misc/vlcs_files.txt`; else those
that make the totals of the DomainBed paper, 9,991, 15,588, 24,788 and 586,575 (DomainNet without
the duplicates that DomainBed takes out)."""
CRITERION = "mean_group_top1"
"""DomainBed's training-domain validation: each domain that trains counts the same."""

UNEVEN = "a domain is divided without regard to classes, and some have few images"


class _WholeSet(NamedTuple):
    """A set as it lies on the disk, whatever is held out of it."""

    images: Split
    """The images of all domains, one domain after another, each in torchvision's order."""
    counts: Mapping[str, int]
    """Images of each domain."""
    digest: str
    notes: tuple[str, ...]


def open_domain_bed(config: DataConfig) -> FamilyData:
    """Open the data set of `config.family` below `data.root` with `data.test_domain` held out.

    `train` is the greater part of each other domain, and `val` their smaller parts. The held-out
    domain is measured on its greater part, as DomainBed does, besides on the smaller one and on
    both.

    Raises RequestError for a domain that the set does not have, naming every missing folder, or
    every mistake in the existing ones. Images are not decoded here: a broken one raises when it is
    read.
    """
    folders = FOLDERS[config.family]
    test = check_held_out(config, folders)
    places = find_folders(data_root(config, folders), folders)
    with readable():
        whole = _open_data(config.family, tuple(places.items()))
    parts = _parts_of(whole.counts, config)
    training = [parts[name] for name in folders if name != test]
    # A part of one domain has no groups to tell apart.
    shift, out = (replace(whole.images.subset(rows), groups=None) for rows in parts[test])
    return FamilyData(
        class_names=tuple(map(plain_name, class_folders(config.family))),
        train=whole.images.subset([row for part in training for row in part.train]),
        val=whole.images.subset([row for part in training for row in part.kept]),
        test=None,
        shifts={test: shift},
        extras={f"{test}_out": out},
        derived={f"ood/{test}_all": Derived((f"ood/{test}", f"ood/{test}_out"))},
        uneven=UNEVEN,
        digest=whole.digest,
        notes=whole.notes,
    )


def _parts_of(counts: Mapping[str, int], config: DataConfig) -> Mapping[str, Parts]:
    """Return the two parts of each domain, as rows of the whole data set. Raises RequestError where
    a smaller part would be empty."""
    parts, first = {}, 0
    for environment, (domain, count) in enumerate(counts.items()):
        places = divided(
            count, config.val_fraction, trial_seed=config.split_number, environment=environment
        )
        if not places.kept:
            raise RequestError(
                f"data.val_fraction: {config.val_fraction:g} of the {count} images of {domain} "
                "keeps none back; give a greater fraction"
            )
        parts[domain] = Parts(*(tuple(first + place for place in part) for part in places))
        first += count
    return parts


@cache_open(2)
def _open_data(family: str, places: tuple[tuple[str, Path], ...]) -> _WholeSet:
    folders, published = dict(places), FOLDERS[family]
    manifests = read_folders(family, folders, published)
    files = [(domain, path) for domain, manifest in manifests.items() for path in manifest.paths]
    paths = [f"{folders[domain]}/{path}" for domain, path in files]
    # Every domain has every class folder and no other, so they count in the classes' order.
    counts = torch.tensor([[*manifest.counts.values()] for manifest in manifests.values()])
    labels = torch.arange(counts.shape[1]).repeat(len(places)).repeat_interleave(counts.flatten())
    return _WholeSet(
        Split(
            ids=tuple(f"{domain}/{path}" for domain, path in files),
            labels=labels,
            source=Files(Path(), pa.array(paths, pa.string()), read_plain),
            groups=tuple(domain for domain, _ in files),
        ),
        {domain: len(manifest.paths) for domain, manifest in manifests.items()},
        _digest(family, manifests),
        count_notes(
            family,
            {
                name: (len(manifest.paths), published[name].images)
                for name, manifest in manifests.items()
            },
        ),
    )


def _digest(family: str, manifests: Mapping[str, Manifest]) -> str:
    """Return a digest of the classes and of each domain's images by path and size, whichever domain
    is held out."""
    digest = hashlib.sha256(f"{family}/1\n".encode())
    digest.update("\0".join(class_folders(family)).encode())
    for domain, manifest in manifests.items():
        digest.update(f"\n{domain}\0{manifest.digest}".encode())
    return digest.hexdigest()


def _family(
    name: str, title: str, contexts: str, *, lr: float, steps_per_epoch: int = 300
) -> Family:
    return Family(
        name=name,
        summary=f"DomainBed's {title} under data.root, with data.test_domain held out",
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
        domains=tuple(FOLDERS[name]),
        folders=FOLDERS[name],
        metrics=(CRITERION, "worst_group_top1"),
        validated_by=CRITERION,
    )


# Rates: `scripts.sh` of thuml/CLIPood, which trains CLIP on these sets by AdamW with cosine decay
# and the weight decay 0.1. Steps and batch: DomainBed's `datasets.py` and `hparams_registry.py`.
PACS = _family("pacs", "PACS", "known_domain_words", lr=5e-6)
VLCS = _family("vlcs", "VLCS", "openai", lr=5e-6)
OFFICE_HOME = _family("office_home", "Office-Home", "known_domain_words", lr=1e-5)
TERRA_INCOGNITA = _family("terra_incognita", "TerraIncognita", "openai", lr=5e-6)
DOMAIN_NET = _family("domain_net", "DomainNet", "known_domain_words", lr=1e-5, steps_per_epoch=1000)
DOMAIN_BED = (PACS, VLCS, OFFICE_HOME, TERRA_INCOGNITA, DOMAIN_NET)
