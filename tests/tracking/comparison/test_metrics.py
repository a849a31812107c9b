"""Which metrics have a series of their own in MLflow, and which are fractions."""

from __future__ import annotations

from carft_sweep.tracking.comparison.metrics import has_series, is_fraction


def test_of_hundreds_of_metrics_mlflow_has_a_series_of_those_that_runs_are_compared_by() -> None:
    compared = (
        "retention/dtd/top1",
        "ood/x/top1",
        "ood/mean/ece",
        "id/test/brier",
        "context/ood/x/kl",
        "train/loss",
    )
    assert all(map(has_series, compared))
    assert has_series("ood/val/ece")  # settings may be chosen on it
    assert has_series("ood/test/worst_group_top1")
    assert not any(map(has_series, ("ood/x/ece", "ood/x/nll", "context/id/test/entropy")))
    names = (*compared, "ood/x/macro_f1", "id/val/top1", "ood/mean/macro_f1", "gap/top1")
    of_all = {"retention/dtd/top1", "ood/x/top1", "ood/x/macro_f1"}
    of_alpha = {"id/val/top1", "ood/mean/macro_f1"}
    assert {name for name in names if has_series(name, of="merge")} == of_all | of_alpha
    assert {name for name in names if has_series(name, of="alpha")} == of_alpha


def test_accuracies_and_calibration_errors_are_fractions() -> None:
    assert all(map(is_fraction, ("id/test/top1", "ood/x/ece", "gap/top1", "id/val/macro_f1")))
    assert is_fraction("id/test/mean_per_class_top1")
    assert not any(map(is_fraction, ("id/test/nll", "id/test/brier", "context/id/test/kl")))
