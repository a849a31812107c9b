"""What the files of a run folder hold, as they are checked when they are read."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, ClassVar

from carft_sweep.carft_core.errors import RequestError

FINITE: dict[str, Any] = {"allow_inf_nan": False}
"""pydantic's setting for a dataclass without NaN and infinity: our files are standard JSON."""


def check_time(*times: float | None) -> None:
    """Raise ValueError for times, in seconds since the Unix epoch, that no calendar has."""
    for seconds in times:
        if seconds is not None and not 0 <= seconds < 250_000_000_000:
            raise ValueError(f"{seconds:g} is no time in seconds since 1970")


_LABEL = re.compile(r"\w[^/\0]{0,199}")


def check_label(label: str) -> None:
    """Raise RequestError for a merged model's label that cannot be a folder's name."""
    if not _LABEL.fullmatch(label):
        raise RequestError(
            f"{label[:40]!r} is no label of a merged model: it begins with a letter or digit, and "
            "has no slash and at most 200 characters"
        )


class Decision(Enum):
    """Whether a run that has reported an epoch continues or stops."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class KeptConfig:
    """The sections of a trial config as plain mappings; their own models check the content."""

    model: dict[str, Any]
    data: dict[str, Any]
    prompts: dict[str, Any]
    algorithm: dict[str, Any]
    optim: dict[str, Any]
    device: str


@dataclass(frozen=True)
class KeptIdentity:
    """What a training digest covers, as far as it is compared part by part."""

    model: str | None = None
    data: dict[str, Any] | None = None
    classes: str | None = None
    contexts: str | None = None
    optim: dict[str, Any] | None = None
    device: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Claim:
    """`config.json`: which run a folder belongs to."""

    digest: str
    seed: int
    config: KeptConfig
    identity: KeptIdentity


@dataclass(frozen=True)
class EpochReport:
    """An epoch of a run, as `history.json` lists them; 0 is the model before training."""

    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    epoch: int
    epochs: int
    step: int
    steps: int
    metrics: dict[str, float]
    seconds: float
    timestamp: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since the Unix epoch, when it was measured."""

    def __post_init__(self) -> None:
        check_time(self.timestamp / 1000)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


History = list[EpochReport]
"""The content of `history.json`."""


@dataclass(frozen=True)
class Point:
    """A line of `steps.jsonl`: what was measured within an epoch."""

    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    step: int
    """The step of the run, counted from 1."""
    timestamp: int
    """Milliseconds since the Unix epoch."""
    metrics: dict[str, float]

    def __post_init__(self) -> None:
        check_time(self.timestamp / 1000)


@dataclass(frozen=True)
class Facts:
    """The facts of a run (`facts_of`) that are computed with; a file may hold more."""

    data: str | None = None
    budget: str | None = None
    result: str | None = None
    images: dict[str, int] = field(default_factory=dict)
    outside_means: list[str] = field(default_factory=list)
    data_notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a budget without a count."""
        if self.budget is not None and not re.match(r"\d{1,12} (epochs|steps)\b", self.budget):
            raise ValueError(f"{self.budget[:40]!r} is no training budget")


@dataclass(frozen=True)
class Evaluation:
    """`evaluations/<label>/metrics.json`: what was measured of one model."""

    __pydantic_config__: ClassVar[Any] = FINITE

    digest: str
    step: int
    values: dict[str, Any]
    metrics: dict[str, float]
    facts: Facts


@dataclass(frozen=True)
class Trained:
    """`trained.json`: the end of training."""

    __pydantic_config__: ClassVar[Any] = FINITE

    seconds: float
    ended: float | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_time(self.ended)
