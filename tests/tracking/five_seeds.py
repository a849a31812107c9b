"""Accuracies of five seeds that the verdict is sure of, and comparisons by options."""

from __future__ import annotations

from collections.abc import Sequence

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from tests.tracking.made_up import arm

STEADY = [0.65, 0.652, 0.648, 0.651, 0.649]
NEAR = [0.6505, 0.6516, 0.6484, 0.6508, 0.6492]
"""The same but for the luck of seeds: without it nothing is tested."""
LOW = [0.340, 0.343, 0.338, 0.341, 0.339]
HIGH = [0.361, 0.362, 0.358, 0.360, 0.3605]
FINE_TUNE = arm("fine_tune", STEADY, LOW)


def compared(*groups: Sequence[RunRecord], **options: object) -> Comparison:
    spec = ComparisonSpec.model_validate(options)
    return compare([run for runs in groups for run in runs], spec, sweep="s")
