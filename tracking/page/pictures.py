"""The gallery as a page shows it: counts, and pictures with what each model said."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tracking.gallery import Answer, Counts, Gallery, Keeper, Picture


@dataclass(frozen=True)
class Said:
    """What a model says of an image."""

    text: str
    right: bool


@dataclass(frozen=True)
class Shown:
    """One picture with its caption."""

    source: str
    """A data URI."""
    alt: str
    label: str
    shift: str
    zero_shot: Said
    reference: Said
    candidate: Said


@dataclass(frozen=True)
class Group:
    """The pictures of one cell."""

    title: str
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Pictures:
    """A gallery with its thumbnails, as far as there are any."""

    gallery: Gallery
    thumbnails: Mapping[tuple[str, str], bytes]
    """PNG files by (split, item)."""
    class_names: Sequence[str]

    @property
    def counts(self) -> tuple[Counts, ...]:
        """One for each split."""
        return self.gallery.counts

    @property
    def candidate(self) -> str:
        """The label of the setting that is judged."""
        return self.gallery.candidate

    @property
    def reference(self) -> str:
        """The label of what it is judged against."""
        return self.gallery.reference

    @cached_property
    def about(self) -> str:
        """What is shown and by which rule it was taken."""
        text = (
            "Of the images that the zero-shot model has right: which did training keep? A setting "
            "keeps an image when more than half of its runs have it right."
        )
        if any(group.pictures for group in self.groups):
            text += (
                " The pictures are taken by a fixed rule, as many of either kind as there are up "
                "to twelve: in turn from every shift, those first on which the runs agree most."
            )
        return text

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Both cells in which the two differ."""
        names = (self.candidate, self.reference)
        return (
            Group(_title(*names), tuple(self._shown("candidate"))),
            Group(_title(*reversed(names)), tuple(self._shown("reference"))),
        )

    def _shown(self, keeper: Keeper) -> Iterator[Shown]:
        for picture in self.gallery.pictures:
            png = self.thumbnails.get((picture.split, picture.item))
            if picture.kept_by == keeper and png is not None:
                yield self._one(picture, png)

    def _one(self, picture: Picture, png: bytes) -> Shown:
        shift, label = picture.split.removeprefix("ood/"), self._name(picture.label)
        encoded = base64.b64encode(png).decode()
        return Shown(
            source=f"data:image/png;base64,{encoded}",
            alt=f"{label}, {shift}",
            label=label,
            shift=shift,
            zero_shot=self._said(picture.zero_shot),
            reference=self._said(picture.reference),
            candidate=self._said(picture.candidate),
        )

    def _said(self, answer: Answer) -> Said:
        """`✓ 3 of 3 runs`, or `✗ bathtub, right in 1 of 3 runs`."""
        kept = answer.right > answer.of / 2
        wrong = "" if kept or answer.wrong is None else self._name(answer.wrong)
        runs = f"{answer.right} of {answer.of} runs" if answer.of > 1 else ""
        if wrong and runs:
            runs = f", right in {runs}"
        return Said(f"{'✓' if kept else '✗'} {wrong}{runs}".rstrip(), kept)

    def _name(self, number: int) -> str:
        known = 0 <= number < len(self.class_names)
        return self.class_names[number] if known else f"class {number}"


def _title(keeper: str, loser: str) -> str:
    return f"Kept by {keeper}, lost by {loser}"
