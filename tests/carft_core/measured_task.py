"""The toy task with everything that can be measured, for tests of how it is measured."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.base import Derived
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.training.setup import Prepared, prepared

OTHER_TASK = "retention/dark"


def measured_task(config: TrialConfig, copies: int = 0) -> Prepared:
    """With a part of test, an extra, a union of shifts that do not follow each other, and another
    task, of five classes, on the images of a shift.

    `copies` more shifts show the same images once more.
    """
    stand = prepared(config)
    dark, pale = stand.data.shifts["dark"], stand.data.shifts["pale"]
    more = {f"copy-{number}": pale for number in range(copies)}
    data = replace(
        stand.data,
        shifts={"dark": dark, **more, "pale": pale},
        extras={"again": dark},
        derived={
            "id/test_ends": Derived(("id/test",), (0, 2)),
            "ood/both": Derived(("ood/dark", "ood/pale")),
        },
    )
    measured = {"id/val": data.id_val, **data.measured(), OTHER_TASK: dark}
    digests = {**stand.teacher.digests, **dict.fromkeys(measured, data.digest)}
    splits = {"train": data.train, **measured}
    teacher = replace(stand.teacher, splits=splits, digests=digests)
    head = _random(nn.Linear(32, 5, bias=False))
    return replace(stand, data=data, teacher=teacher, other_heads={OTHER_TASK: head})


def moved_classifier(stand: Prepared, factor: float = 1.1) -> ImageClassifier:
    """One that says something else than the zero-shot model."""
    classifier = stand.teacher.new_classifier()
    _random(classifier.head)
    with torch.no_grad():
        for parameter in classifier.visual.parameters():
            parameter.mul_(factor)
    return classifier


def _random(head: nn.Linear) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    return head.requires_grad_(False)
