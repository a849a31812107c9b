"""Names made of folders' names: of a family, and of classes as prompts call them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from carft_core.data.folders import plain_name

NUMBERED = re.compile(r"\d+[ ._-]+(?=[A-Za-z])")


def family_name(folder: str, taken: Collection[str]) -> str:
    """Lower-case letters, digits and `_`, beginning with a letter; none that is taken."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"images_{name}".rstrip("_")
    return f"my_{name}" if name in taken else name


def class_names(folders: Sequence[str]) -> Mapping[str, str]:
    """Folder -> name: as is with spaces for underscores, without a number before it.

    Folders that would get one name keep their own.
    """
    short = {folder: plain_name(NUMBERED.sub("", folder, count=1)) for folder in folders}
    names = list(short.values())
    return {
        folder: name if name and names.count(name) == 1 else folder
        for folder, name in short.items()
    }
