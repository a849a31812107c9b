"""The sections of a trial config, each with its fields and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from carft_core.config_types import (
    AugmentationName,
    FamilyName,
    Fraction,
    NonNegative,
    OpenFraction,
    Positive,
    PositiveInt,
    ShiftName,
    each_once,
)


class Section(BaseModel):
    """A part of the trial config."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """Which CLIP: `builtin`, an open_clip name with its tag, `hf-hub:...`, or a checkpoint file."""

    name: str = "builtin"
    pretrained: str | None = None


class DataConfig(Section):
    """Which family of data sets, where it lies, how much of it trains, and in which views."""

    family: str = "icon_shift"
    root: str | None = None
    train_fraction: Fraction = 1.0
    shots: PositiveInt | None = None
    """So many images of each class train, instead of a fraction."""
    val_fraction: OpenFraction = 0.1
    split_seed: Annotated[int, Field(ge=0)] | Literal["seed"] = 0
    """By what a split is drawn; `seed`: by each run's own seed, as DomainBed's trial seed does."""
    test_domain: str | None = None
    """The domain that does not train and is measured, in families of domains."""
    val_domain: str | None = None
    """One more that does not train, and on which settings are chosen instead."""
    balanced: bool = False
    """Whether a batch has `optim.batch_size` images of each domain that trains."""
    shifts: Annotated[
        Annotated[tuple[ShiftName, ...], Field(strict=False)] | None, AfterValidator(each_once)
    ] = None
    """Those that are measured; left out, the family's own choice. A name stands for every shift
    that begins with it and `-`."""

    augmentation: AugmentationName | None = None
    """The training views of families that have a default for it; others have their own views."""
    bad_files: Literal["refuse", "skip"] = "refuse"
    """What happens to images that cannot be read: `skip` looks for them before anything begins."""

    @model_validator(mode="after")
    def _shots_or_a_fraction(self) -> Self:
        if self.shots is not None and self.train_fraction != 1:
            raise ValueError("give shots or train_fraction, not both")
        return self

    @property
    def split_number(self) -> int:
        """The seed of the split. Raises ValueError where it is a run's, and no run is known."""
        if self.split_seed == "seed":
            raise ValueError("data.split_seed: seed stands for that of a run; see for_seed")
        return self.split_seed


class PromptsConfig(Section):
    """Template sets, by name or as a path to a file: for the classifier and for the contexts."""

    classes: str = "openai"
    contexts: str = "openai"


class OptimConfig(Section):
    """AdamW with warm-up and cosine decay. The defaults are WiSE-FT's recipe at CAR-FT's rate."""

    lr: Positive = 1e-5
    weight_decay: NonNegative = 0.1
    decay_norms_and_biases: bool = True
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    steps_per_epoch: PositiveInt | None = None
    """With `steps`: how many are an epoch, behind which `id/val` is measured; else a pass is."""
    batch_size: PositiveInt = 512
    micro_batch: PositiveInt | None = None
    warmup: NonNegative = 0.1
    """Below 1 the fraction of all steps, from 1 on a number of steps."""
    clip: Positive | None = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: Literal["frozen", "train"] = "frozen"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.steps is None and self.steps_per_epoch is not None:
            raise ValueError("steps_per_epoch needs steps, the number of all")
        return self


class EvalConfig(Section):
    """How a finished run is measured; a change here never trains anything again."""

    every_epoch: bool = False
    batch_size: PositiveInt = 256
    context_probe: bool = True
    logits: Literal["auto", "always", "never"] = "auto"
    """Full logits beside the predictions: `auto` below 50 MB a split."""
    retention: Annotated[
        tuple[FamilyName, ...], Field(strict=False), AfterValidator(each_once)
    ] = ()
    """Other families: how much of the zero-shot model's accuracy on their tests is left. The
    run's own among them is left out."""
    retention_root: str | None = None
    """The data root of these families, if it is not `data.root`."""


class KeepConfig(Section):
    """Which checkpoint is the result, and what stays on disk once a run is done."""

    result: Literal["last", "best_val"] = "last"
    weights: bool = True
    predictions: bool = True


SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "prompts": PromptsConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "keep": KeepConfig,
}
