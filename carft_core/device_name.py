"""The field `device`: the names under which a run may ask for where it is computed."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

DEVICE = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


def _device(value: str) -> str:
    if re.fullmatch(DEVICE, value):
        return value
    near = "; for an Nvidia GPU say cuda" if value.lower().startswith("gpu") else ""
    raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, got {value[:80]!r}{near}")


Device = Annotated[
    str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^({DEVICE})$"})
]
