"""The families of data sets by name: one file and one line here each; users register their own."""

from __future__ import annotations

from carft_core.data.base import DataFolder, Family, FamilyData, Split, Transform
from carft_core.data.domain_bed import DOMAIN_BED
from carft_core.data.downstream import DOWNSTREAM
from carft_core.data.fmow import FMOW
from carft_core.data.icon_shift import ICON_SHIFT, ICON_SHIFT_DEV
from carft_core.data.image_folder import IMAGE_FOLDER
from carft_core.data.imagenet import IMAGENET
from carft_core.data.iwildcam import IWILDCAM
from carft_core.registry import Registry


def _refusal(thing: object) -> str | None:
    """A family is opened by a function: the file that defines it is part of what a run is."""
    if not isinstance(thing, Family):
        return "it must be a Family"
    if not hasattr(thing.open, "__qualname__"):
        return "its `open` must be a function that a module defines"
    return None


FAMILIES: Registry[Family] = Registry("family", _refusal, code=lambda family: family.open)
FAMILIES.register(ICON_SHIFT)
FAMILIES.register(ICON_SHIFT_DEV)
FAMILIES.register(IMAGE_FOLDER)
FAMILIES.register(IMAGENET)
FAMILIES.register(IWILDCAM)
FAMILIES.register(FMOW)
for _family in (*DOMAIN_BED, *DOWNSTREAM):
    FAMILIES.register(_family)

__all__ = ["FAMILIES", "DataFolder", "Family", "FamilyData", "Split", "Transform"]
