"""Comparisons and predictions in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.results.records import load_parts
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import compare_sweeps
from carft_sweep.tracking.comparison.result_table import check_table, is_table, read_table
from carft_sweep.tracking.comparison.spec import REFERENCE, ComparisonSpec, agreed
from carft_sweep.tracking.mlflow_reader import read_sweeps
from carft_sweep.tracking.report.html import show_in_notebooks
from carft_sweep.tracking.report.predictions import predictions_frame

if TYPE_CHECKING:
    import pandas as pd


def load_comparison(
    *sweeps: str | Path | pd.DataFrame,
    home: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    conditions: Sequence[str] = (),
    reference: str = REFERENCE,
    spec: ComparisonSpec | None = None,
) -> Comparison:
    """Return the comparison of one sweep, or of several as one, from a home or from MLflow.

    A table of results without runs is compared alone: a frame, or a CSV file's path.

    Args:
        sweeps: Names, on a server `NAME@HOME` where several homes have the same name; published
            folders (`./theirs`); or a table.
        home: The home whose runs are read (CARFT_HOME, `.carft`).
        tracking_uri: A server or a database of MLflow's to read instead; data in run folders alone
            (predictions, curves) are missing then.
        experiment: The experiment on that server.
        conditions: As of `compare --where`, such as `kl_weight>=0.3`.
        reference: The algorithm to compare with.
        spec: How to select and test, overriding the sweeps' own rules.

    Raises:
        RequestError: The home has no such sweep, or another account could have written it and
            CARFT_SHARED_HOMES does not name it.
        TrackingError: The server has no such sweep, the sweeps judge differently, or a table has
            mistakes.
        ServiceUnreachable: The server does not answer.
    """
    if not sweeps:
        raise TypeError("load_comparison needs the name of a sweep")
    tables = [name for name in sweeps if not isinstance(name, (str, Path)) or is_table(name)]
    if tables and (len(sweeps) > 1 or tracking_uri):
        raise TypeError("a table is compared alone, neither with others nor from a server")
    names = [] if tables else [*map(str, sweeps)]
    if tables:
        parts = [read_table(tables[0])]
    elif tracking_uri:
        parts = read_sweeps(tracking_uri, experiment, names)
    else:
        parts = load_parts(find_home(home), names)
    texts = [conditions] if isinstance(conditions, str) else conditions
    spec = spec or agreed({part.sweep: part.spec for part in parts})
    spec = spec.model_copy(update={"reference": reference})
    if tables:
        check_table(parts[0], spec)
    show_in_notebooks()
    return compare_sweeps(parts, spec, where=texts)


def predictions(
    sweep: str | Comparison,
    *,
    home: str | Path | None = None,
    splits: str | Sequence[str] | None = None,
    settings: str | Sequence[str] | None = None,
    merges: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return a frame with a row for each image and model of a sweep, with the prediction.

    Columns: `split` (`id/test`, `ood/outline`), `shift` (`outline`; missing in distribution),
    `class` and `predicted` (names), `correct`, `confidence` (the probability of what is
    predicted), `setting` and `algorithm`, `seed` (missing where nothing is trained), `merge` and
    `alpha` (missing for the model that the run trained), and `image`, the path or key in its data.

    Which images does CAR-FT gain over fine-tuning, and which does it lose, by shift and class?

    ```python
    import pandas as pd

    from carft_sweep import predictions

    new, old = "car_ft kl_weight=1", "fine_tune"
    frame = predictions("kl_weight", settings=[new, old], merges="unmerged")
    right = frame.pivot_table("correct", ["shift", "class", "image"], "setting", observed=True)
    change = right[new] - right[old]  # in the share of the seeds that have the image right
    images = pd.DataFrame({"gained": change > 0.5, "lost": change < -0.5})
    images.groupby(["shift", "class"], observed=True).sum()
    ```

    Args:
        sweep: The sweep's name, or the comparison that `run_sweep` or `load_comparison` returned.
        home: The home with the run folders, for a name (CARFT_HOME, `.carft`).
        splits: Only these, shifts also by their own names (`outline`).
        settings: Only these, or all of an algorithm (`car_ft`).
        merges: Only these: `wise_ft@0.5`, `wise_ft` of every alpha, `unmerged`.
        seeds: Only these, beside what no seed changes.

    Raises:
        RequestError: The home has no such sweep.
        TrackingError: A name is unknown, no run here keeps predictions, or there are more than
            20 million of them, which would not fit into memory.
    """
    comparison = load_comparison(sweep, home=home) if isinstance(sweep, str) else sweep
    return predictions_frame(
        comparison, splits=splits, settings=settings, merges=merges, seeds=seeds
    )
