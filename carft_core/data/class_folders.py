"""What is there and what is wrong of a published data set's class folders, by their listing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from carft_core.data.base import FoundSplit
from carft_core.data.folder_tree import has_loose_images, listed, nearest, visible_folders
from carft_core.data.manifest import Manifest


def found_classes(
    folder: Path,
    manifest: Manifest,
    wanted: Collection[str],
    *,
    published: int,
    problems: Iterable[str],
) -> FoundSplit:
    """What is there of a folder whose class folders are `wanted`; the others do not count."""
    counts = [manifest.counts.get(one, 0) for one in wanted]
    return FoundSplit(
        folder,
        images=sum(counts),
        published=published,
        classes=sum(count > 0 for count in counts),
        expected_classes=len(wanted),
        digest=manifest.digest,
        problems=tuple(f"{folder}: {problem}" for problem in problems),
    )


def problems_of(
    folder: Path,
    manifest: Manifest,
    wanted: Collection[str],
    *,
    layout: str,
    loose: str = "",
    more: bool = False,
) -> Iterator[str]:
    """Why a folder is not what its makers publish; numbers of images are no reason.

    `wanted` are its class folders, others may lie there only with `more`. `loose` is said of images
    that lie outside of class folders.
    """
    found = manifest.counts
    if not found:
        yield f"has no class folders, expected {layout}" + (
            f"; its images lie outside them{loose}" if has_loose_images(folder) else ""
        )
        return
    deeper = [one for one in found if set(wanted) <= {*visible_folders(folder / one)}]
    if deeper and not set(wanted) & set(found):
        yield f"has its class folders one level too deep, in {deeper[0]}/: move them up"
        return
    missing = [one for one in wanted if one not in found]
    if missing:
        yield f"lacks {len(missing)} of {len(wanted)} class folders: {listed(missing)}"
    strange = [] if more else [one for one in found if one not in wanted]
    if strange:
        near = nearest(strange[0], missing)
        yield f"has {len(strange)} folders that are no class of it: {listed(strange)}{near}"
    bare = [one for one, count in found.items() if count == 0 and one in wanted]
    if bare:
        yield f"has class folders without images: {listed(bare)}"
    empty = [path for path in manifest.empty if path.partition("/")[0] in wanted]
    if empty:
        yield f"has files that are empty or links to nothing: {listed(empty)}"
