"""The toy task with everything that a bench can measure, for tests of how it is measured."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from carft_core.clip import ImageClassifier
from carft_core.config import TrialConfig
from carft_core.data.base import Derived
from carft_core.evaluate import OtherTask
from carft_core.prepare import Bench, open_bench


def measured_bench(config: TrialConfig, copies: int = 0) -> Bench:
    """With a part of test, an extra, and a union of shifts that do not follow each other.

    `copies` more shifts show the same images once more.
    """
    bench = open_bench(config)
    data = bench.data
    dark, pale = data.shifts["dark"], data.shifts["pale"]
    more = {f"copy-{number}": pale for number in range(copies)}
    return replace(
        bench,
        data=replace(
            data,
            shifts={"dark": dark, **more, "pale": pale},
            extras={"again": dark},
            derived={
                "id/test_ends": Derived(("id/test",), (0, 2)),
                "ood/both": Derived(("ood/dark", "ood/pale")),
            },
        ),
    )


def other_task(bench: Bench) -> OtherTask:
    """Another choice on the images of a shift."""
    return OtherTask("retention/dark", bench.data.shifts["dark"], _random(nn.Linear(32, 5, False)))


def moved_classifier(bench: Bench) -> ImageClassifier:
    """One that says something else than the zero-shot model."""
    classifier = bench.teacher.new_classifier()
    _random(classifier.head)
    with torch.no_grad():
        for parameter in classifier.visual.parameters():
            parameter.mul_(1.1)
    return classifier


def _random(head: nn.Linear) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    return head.requires_grad_(False)
