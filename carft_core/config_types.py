"""What the fields of a trial config may hold: numbers in ranges, known names, devices."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from carft_core.data import FAMILIES
from carft_core.data.augmentation import AUGMENTATIONS
from carft_core.errors import unknown

Fraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
ShiftName = Annotated[str, Field(min_length=1)]


def each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The same names. Raises ValueError for one that stands among them twice."""
    twice = [name for index, name in enumerate(names or ()) if name in (names or ())[:index]]
    if twice:
        raise ValueError(f"{twice[0]} stands in the list twice")
    return names


def _family(value: str) -> str:
    if value not in FAMILIES:
        raise ValueError(unknown("family", value, FAMILIES))
    return value


FamilyName = Annotated[str, AfterValidator(_family)]


def _augmentation(value: str) -> str:
    if value not in AUGMENTATIONS:
        raise ValueError(unknown("augmentation", value, AUGMENTATIONS))
    return value


AugmentationName = Annotated[
    str, AfterValidator(_augmentation), Field(json_schema_extra={"enum": list(AUGMENTATIONS)})
]
