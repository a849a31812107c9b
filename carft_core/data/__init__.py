"""The families of data sets by name: one file and one line here each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from carft_core.data.base import Family, FamilyData, Split, Transform
from carft_core.data.icon_shift import ICON_SHIFT, ICON_SHIFT_DEV
from carft_core.data.image_folder import IMAGE_FOLDER

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (ICON_SHIFT, ICON_SHIFT_DEV, IMAGE_FOLDER)}
)

__all__ = ["FAMILIES", "Family", "FamilyData", "Split", "Transform"]
