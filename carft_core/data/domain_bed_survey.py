"""What lies there of one of DomainBed's sets, by split, or by domain where none is held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.data.base import DataFolder, FoundSplit
from carft_core.data.class_folders import found_classes, problems_of
from carft_core.data.data_root import data_root, found_folder, missing_folder, readable
from carft_core.data.domain_bed_folders import LAYOUT, SETS, classes_of
from carft_core.data.held_out import held_out
from carft_core.data.manifest import read_manifest

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig


def look_domain_bed(config: DataConfig) -> Mapping[str, FoundSplit]:
    """What is found of each split, and how many images it would have of the set as published.

    Of each domain, as if it were a shift, where none is held out that the set has. Raises
    RequestError where there is no data root, or a folder that cannot be read.
    """
    known = SETS[config.family]
    root = data_root(config, known.folders)
    with readable():
        domains = {
            name: _found(classes_of(config.family), folder, root)
            for name, folder in known.folders.items()
        }
    test = config.test_domain
    if test not in domains:
        return {f"shifts/{name}": found for name, found in domains.items()}
    kept = {name: int(it.images * config.val_fraction) for name, it in known.folders.items()}
    greater = {name: it.images - kept[name] for name, it in known.folders.items()}
    training = [name for name in domains if name not in held_out(config)]
    parts = {
        "train": {name: greater[name] for name in training},
        "val": {name: kept[name] for name in training},
        f"shifts/{test}": {test: greater[test]},
        f"extras/{test}_out": {test: kept[test]},
    }
    if config.val_domain in domains:
        parts["val"] = {config.val_domain: greater[config.val_domain]}
    return {
        split: _part([domains[name] for name in sizes], sum(sizes.values()))
        for split, sizes in parts.items()
    }


def _found(classes: tuple[str, ...], wanted: DataFolder, root: Path) -> FoundSplit:
    """A whole domain."""
    folder = found_folder(root, wanted)
    if folder is None:
        return FoundSplit(
            is_there=False, published=wanted.images, problems=(missing_folder(wanted),)
        )
    manifest = read_manifest(folder)
    problems = problems_of(folder, manifest, classes, layout=LAYOUT)
    return found_classes(folder, manifest, classes, published=wanted.images, problems=problems)


def _part(domains: Iterable[FoundSplit], published: int) -> FoundSplit:
    """A split that is made of parts of domains; how many images it has is known once it opens."""
    found = list(domains)
    return FoundSplit(
        found[0].folder if len(found) == 1 else None,
        is_there=all(domain.is_there for domain in found),
        published=published,
        problems=tuple(problem for domain in found for problem in domain.problems),
    )
