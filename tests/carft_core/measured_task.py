"""The toy task with everything that can be measured, for tests of how it is measured."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.base import Derived
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.training.setup import RunSetup, open_setup

OTHER_TASK = "retention/dark"


def measured_task(config: TrialConfig, copies: int = 0) -> RunSetup:
    """With a part of test, an extra, a union of shifts that do not follow each other, and another
    task, of five classes, on the images of a shift; `copies` more shifts show these once more."""
    setup = open_setup(config)
    dark, pale = setup.data.shifts["dark"], setup.data.shifts["pale"]
    more = {f"copy-{number}": pale for number in range(copies)}
    data = replace(
        setup.data,
        shifts={"dark": dark, **more, "pale": pale},
        extras={"again": dark},
        derived={
            "id/test_ends": Derived(("id/test",), (0, 2)),
            "ood/both": Derived(("ood/dark", "ood/pale")),
        },
    )
    measured = {"id/val": data.id_val, **data.measured(), OTHER_TASK: dark}
    digests = {**setup.teacher.digests, **dict.fromkeys(measured, data.digest)}
    splits = {"train": data.train, **measured}
    teacher = replace(setup.teacher, splits=splits, digests=digests)
    head = _random(nn.Linear(32, 5, bias=False))
    return replace(setup, data=data, teacher=teacher, other_heads={OTHER_TASK: head})


def moved_classifier(setup: RunSetup, factor: float = 1.1) -> ImageClassifier:
    """One that says something else than the zero-shot model."""
    classifier = setup.teacher.new_classifier()
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
