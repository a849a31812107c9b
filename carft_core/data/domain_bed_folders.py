"""The five image sets of DomainBed: domains in its order, folders, classes, published counts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from carft_core.data.base import DataFolder
from carft_core.data.folder_tree import plain_name

CLASSES = Path(__file__).with_name("domain_bed_classes")
LAYOUT = "<class>/<image>"


@dataclass(frozen=True)
class DomainSet:
    """One of the data sets."""

    title: str
    """As papers write it."""
    folders: Mapping[str, DataFolder]
    """By domain, in the order of DomainBed's environments: the place of one decides its split."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names here: DomainBed's folders in small letters, with `_` for a space."""
        return tuple(self.folders)


def _set(title: str, root: str, origin: str, counts: Mapping[str, int]) -> DomainSet:
    """`counts` are the images of each environment, by its folder in DomainBed."""
    folders = {
        environment.replace(" ", "_").lower(): DataFolder(
            tuple(f"{root}/{name}" for name in _spelled(environment)), LAYOUT, origin, images
        )
        for environment, images in counts.items()
    }
    return DomainSet(title, MappingProxyType(folders))


def _spelled(environment: str) -> tuple[str, ...]:
    """The usual one first: mirrors of Office-Home write the space in other ways."""
    others = (environment.replace(" ", "_"), environment.replace(" ", ""))
    return tuple(dict.fromkeys((environment, *others)))


SETS: Mapping[str, DomainSet] = MappingProxyType(
    {
        "pacs": _set(
            "PACS",
            "PACS",
            "https://domaingeneralization.github.io",
            {"art_painting": 2_048, "cartoon": 2_344, "photo": 1_670, "sketch": 3_929},
        ),
        "vlcs": _set(
            "VLCS",
            "VLCS",
            "https://github.com/facebookresearch/DomainBed",
            {"Caltech101": 1_415, "LabelMe": 2_656, "SUN09": 3_282, "VOC2007": 3_376},
        ),
        "office_home": _set(
            "Office-Home",
            "office_home",
            "https://www.hemanthdv.org/officeHomeDataset.html",
            {"Art": 2_427, "Clipart": 4_365, "Product": 4_439, "Real World": 4_357},
        ),
        "terra_incognita": _set(
            "TerraIncognita",
            "terra_incognita",
            "https://lila.science/datasets/caltech-camera-traps",
            {
                "location_100": 4_879,
                "location_38": 9_767,
                "location_43": 4_020,
                "location_46": 6_122,
            },
        ),
        "domain_net": _set(
            "DomainNet",
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
"""By family. Folders and their order: `domainbed/datasets.py` of facebookresearch/DomainBed.
Counts: its `misc/vlcs_files.txt`; else those that make the totals of the DomainBed paper, 9,991,
15,588, 24,788 and 586,575 (DomainNet without the duplicates that DomainBed takes out)."""


@functools.cache
def classes_of(family: str) -> tuple[str, ...]:
    """The class folders, in torchvision's order; a label is an index into them."""
    return tuple((CLASSES / f"{family}.txt").read_text(encoding="utf-8").splitlines())


def names_of(family: str) -> tuple[str, ...]:
    """What prompts call the classes."""
    return tuple(plain_name(folder) for folder in classes_of(family))
