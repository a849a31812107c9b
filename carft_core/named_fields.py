"""Fields of the trial config that are names: a device, training views."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from carft_core.data.augmentation import AUGMENTATIONS
from carft_core.errors import unknown

DEVICE = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


def _device(value: str) -> str:
    if re.fullmatch(DEVICE, value):
        return value
    near = "; for an Nvidia GPU say cuda" if value.lower().startswith("gpu") else ""
    raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, got {value[:80]!r}{near}")


Device = Annotated[
    str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE})$"})
]


def _augmentation(value: str) -> str:
    if value not in AUGMENTATIONS:
        raise ValueError(unknown("augmentation", value, AUGMENTATIONS))
    return value


AugmentationName = Annotated[
    str, AfterValidator(_augmentation), Field(json_schema_extra={"enum": list(AUGMENTATIONS)})
]
