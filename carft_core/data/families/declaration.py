"""A user's declaration of a family: which folders are train, test and shifts, of which classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from carft_sweep.carft_core.config.fields import OpenFraction, Section
from carft_sweep.carft_core.config.registry import NAME
from carft_sweep.carft_core.data.base import RESERVED, SHIFT_NAME


def _family_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            f"must be lower-case letters, digits and '_', beginning with a letter, got {value!r}"
        )
    return value


def shift_name(value: str) -> str:
    """Return a shift's name. Raises ValueError for a name that cannot be in a metric's name."""
    if value in RESERVED or not SHIFT_NAME.fullmatch(value):
        raise ValueError(
            f"gives its name to the metric ood/{value}/top1: letters, digits, '_', '-' and '.' "
            "only, and not 'mean', which is the mean over shifts, or 'val', which is for choosing"
        )
    return value


LONGEST_NAME = 255


def _folder(value: str) -> str:
    """Check that a folder is below the root, so that moving the root changes no image's id."""
    path = PurePosixPath(value)
    if not value.strip() or "\0" in value:
        raise ValueError("must name a folder")
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"a name on disk has at most {LONGEST_NAME} bytes, got {value[:60]!r}...")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"must lie below `root`, got {value!r}; choose a root that holds all the folders"
        )
    return str(path)


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value.strip()


def _one_line(value: str) -> str:
    if not value.strip() or "\n" in value:
        raise ValueError("must be one line that says what it is")
    return value


def _listed(value: object) -> object:
    """Return a list as it is, and a text as a list of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be a text, or a list of one or more, got {repr(value)[:80]}")
    return value


_TEXTS = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
Text = Annotated[str, AfterValidator(_text)]
Folder = Annotated[str, AfterValidator(_folder)]
Folders = Annotated[tuple[Folder, ...], BeforeValidator(_listed), _TEXTS]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed), _TEXTS]


class ShiftFolders(Section):
    """Where a shift's images are, and which of them count. A text or a list stands for
    `folders`."""

    folders: Folders = Field(description="One folder of class folders, or a list of them.")
    classes: Texts | None = Field(
        None, description="Only these classes; its other folders are left out."
    )
    exclude: Texts | None = Field(None, description="Classes, or folders of it, to leave out.")
    rename: Mapping[str, str] = Field(
        default_factory=dict, description="Its folders that are named otherwise: folder to class."
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"folders": value} if isinstance(value, (str, list, tuple)) else value


class Prompts(Section):
    """What prompts say where a sweep file does not: a set's name, a file, or templates."""

    classes: Texts | None = Field(None, description="Of the classifier.")
    contexts: Texts | None = Field(None, description="The contexts that CAR-FT holds on to.")


class Declaration(Section):
    """A family; every folder holds class folders and lies below `root`."""

    name: Annotated[str, AfterValidator(_family_name)] = Field(
        description="What the family is known by; left out, the file's name up to its first dot."
    )
    summary: Annotated[str, AfterValidator(_one_line)] = Field(
        "images in class folders, declared in a file", description="What it is, in one line."
    )
    root: Text = Field(".", description="The folder of all images, relative to this file.")
    train: Folders = Field(("train",), description="One folder, or several that are joined.")
    val: Folders | None = Field(
        None, description="For choosing settings; left out, a part of train is carved."
    )
    test: Folders | None = Field(None, description="The in-distribution test.")
    test_fraction: OpenFraction | None = Field(
        None, description="Without a test: this part of each class of train becomes one."
    )
    shifts: Mapping[Annotated[str, AfterValidator(shift_name)], ShiftFolders] = Field(
        default_factory=dict, description="Out of distribution: a name and its folders."
    )
    classes: Texts | None = Field(
        None, description="Only these class folders of train; left out, all."
    )
    exclude: Texts | None = Field(None, description="Class folders of train to leave out.")
    class_names: Mapping[str, Text] = Field(
        default_factory=dict,
        description="What prompts call a class folder; left out, its name, spaces for underscores.",
    )
    class_names_file: Text | None = Field(
        None, description="A classes.json with these names, relative to this file."
    )
    prompts: Prompts = Field(default_factory=Prompts, description="What prompts say.")
    domains: tuple[Text, ...] = Field(
        (), description="Words for its domains: contexts that name one are marked."
    )
    defaults: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Fields of a trial that take these values when a sweep file leaves them out.",
    )


def names_a_set(texts: tuple[str, ...]) -> bool:
    """Return whether a value is the name or the file of a template set, and not templates."""
    return len(texts) == 1 and "{" not in texts[0]
