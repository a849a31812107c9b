"""The options of `compare`, of which `report` has those that choose and judge."""

from __future__ import annotations

import argparse

from carft_core.errors import unknown
from tracking.accuracy import KINDS


def add(compare: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    compare.add_argument(
        "sweeps", metavar="SWEEP", nargs="*", help="names; several are one comparison"
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print as JSON")
    form.add_argument("--csv", action="store_true", help="print as CSV, fractions")
    form.add_argument("--markdown", action="store_true", help="print as Markdown")
    form.add_argument("--latex", action="store_true", help="print as a LaTeX table (booktabs)")
    compare.add_argument("--separate", action="store_true", help="one comparison for each sweep")
    _of_rows(compare)
    of_choice(compare)
    _of_server(compare)


def _of_rows(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        default=[],
        help="only these runs: algorithm=car_ft, kl_weight>=0.3; repeatable",
    )
    compare.add_argument("--columns", metavar="NAME,...", help="headers or metrics, in this order")
    compare.add_argument(
        "--sort", metavar="COLUMN", help="rows by this column; COLUMN:asc, COLUMN:desc"
    )
    compare.add_argument("--all", action="store_true", help="every trial, not the best 50 only")
    compare.add_argument("--all-alphas", action="store_true", help="every point of every merge")
    compare.add_argument(
        "--images", action="store_true", help="add bootstrap intervals over images"
    )
    compare.add_argument(
        "--published", action="store_true", help="add what others have published, marked as quoted"
    )


def of_choice(command: argparse.ArgumentParser) -> None:
    """What is chosen by what, and tested against which algorithm."""
    command.add_argument(
        "--reference",
        metavar="ALGORITHM",
        default="fine_tune",
        help="what the others are tested against (fine_tune)",
    )
    command.add_argument(
        "--metric",
        metavar="NAME",
        help="choose by this metric: id/val/nll, wise_ft@0.5/id/val/top1",
    )
    command.add_argument(
        "--selection",
        metavar="RULE",
        help="choose by best_val, within=0.005, oracle, training_domain or leave_one_domain_out",
    )
    command.add_argument(
        "--id-margin",
        metavar="FRACTION",
        type=_fraction,
        help="by how much ID may be lower and still count as not worse",
    )
    command.add_argument(
        "--by",
        metavar="ACCURACY",
        type=_kind,
        help="judge by top1, macro_f1, mean_per_class_top1, mean_group_top1 or worst_group_top1",
    )


def _of_server(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="read from this MLflow server or database; without names, list its sweeps",
    )
    compare.add_argument("--experiment", metavar="NAME", help="of that server (carft-sweep)")


def _kind(text: str) -> str:
    """`macro_f1`."""
    if text not in KINDS:
        raise argparse.ArgumentTypeError(unknown("accuracy", text, KINDS))
    return text


def _fraction(text: str) -> float:
    """`0.005`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, got {text!r}")
    return value
