"""Sweeps and runs read back from MLflow."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast, get_args

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import RunFilter, SweepRuns, compare_sweeps
from carft_sweep.tracking.comparison.runs import (
    HAS_RESULT,
    HAS_SETTINGS,
    RESULT,
    RULE,
    SETTINGS,
    TRAINS,
    Result,
    Role,
    RunRecord,
    Scalar,
    Settings,
    State,
    read_result,
    read_settings,
)
from carft_sweep.tracking.comparison.spec import REFERENCE, ComparisonSpec, agreed, read_spec
from carft_sweep.tracking.errors import TrackingError, unknown_name
from carft_sweep.tracking.location import (
    EXPERIMENT,
    home_folder,
    is_plain_name,
    read_home_id,
    resolve_location,
    without_password,
)
from carft_sweep.tracking.ownership import check_home
from carft_sweep.tracking.report.html import show_in_notebooks
from carft_sweep.tracking.report.predictions import predictions_frame
from carft_sweep.tracking.store import mlflow_store
from carft_sweep.tracking.store.mlflow_client import connect, find_experiment
from carft_sweep.tracking.store.mlflow_errors import translated

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run


logger = logging.getLogger(__name__)

_HOME = 8
"""Characters of a home's id that are shown."""
_STATES: Mapping[str, State] = {state: state for state in get_args(State)}
_NAMED = 3
"""Runs that a warning names."""


@dataclass(frozen=True)
class ServedRun:
    """A run on a server, its tags and parameters as text."""

    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    artifacts: str = ""
    """URI of the folder of its files."""

    @property
    def digest(self) -> str:
        """The training digest; empty of a sweep's own run."""
        return self.tags.get("carft.run", "")

    @property
    def state(self) -> State:
        """As its driver reported it last."""
        return _STATES.get(self.tags.get("carft.state", ""), "missing")


@dataclass(frozen=True)
class ServedSweep:
    """A sweep's own run."""

    run: ServedRun
    run_id: str
    started: int
    """Milliseconds since the Unix epoch."""

    @property
    def name(self) -> str:
        """The name in its file."""
        return self.run.tags["carft.sweep"]

    @property
    def home(self) -> str:
        """The id of the home that ran it."""
        return self.run.tags.get("carft.home", "")

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `interrupted`."""
        return self.run.tags.get("carft.state", "unknown")

    @property
    def generation(self) -> str | None:
        """The newest one."""
        return self.run.tags.get("carft.generation")

    @property
    def place(self) -> str:
        """`kl_weight@1f3a9c02`: its name with the home, as `find` takes it."""
        return f"{self.name}@{self.home[:_HOME]}"

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON and for a list."""
        begun = datetime.fromtimestamp(self.started / 1000, UTC)
        return {
            "sweep": self.place,
            "name": self.name,
            "home": self.home,
            "state": self.state,
            "begun": begun.strftime("%Y-%m-%d %H:%M"),
            "user": self.run.tags.get("mlflow.user", "unknown"),
            "run_id": self.run_id,
        }

    def line(self) -> str:
        """Write it as a line for people."""
        plain = self.as_dict()
        return f"{self.place}  {self.state}, begun {plain['begun']} UTC by {plain['user']}"


def find(sweeps: Sequence[ServedSweep], name: str) -> ServedSweep:
    """Find the sweep of a name, or of `NAME@HOME` where several homes have one.

    Raises TrackingError that lists them, or suggests the nearest name.
    """
    bare_name, _, home = name.partition("@")
    named = [sweep for sweep in sweeps if sweep.name == bare_name]
    of_home = [sweep for sweep in named if sweep.home.startswith(home)]
    if len(of_home) == 1:
        return of_home[0]
    if not named:
        raise TrackingError(
            unknown_name("sweep", bare_name, sorted({sweep.name for sweep in sweeps}))
        )
    each = "\n".join(f"  {sweep.line()}" for sweep in named)
    if not of_home:
        raise TrackingError(f"no home {home!r} has a sweep {bare_name!r}; there are:\n{each}")
    raise TrackingError(f"{len(of_home)} homes have a sweep {bare_name!r}; say which:\n{each}")


def read_part(
    sweep: ServedSweep,
    runs: Mapping[str, ServedRun],
    settings: Settings | None,
    results: Mapping[str, Result],
    name: str,
) -> SweepRuns:
    """Make a part, under `name`, of the runs of a sweep and of the files that were there.

    Finished runs without a result are left out, with a warning. While the sweep runs, its own
    list of runs lags behind them: their tags say their states, and which have begun since.
    """
    is_running = sweep.state == "running"
    if settings is not None and str(settings.generation) != sweep.generation:
        logger.debug("%s: %s is of generation %s", sweep.place, SETTINGS, settings.generation)
        settings = None
    listed = () if settings is None else settings.records
    records = [_with_result(record, results, record.merges) for record in listed]
    if is_running:
        records = [
            replace(record, state=runs[record.digest].state) if record.digest in runs else record
            for record in records
        ]
    if settings is None or is_running:
        listed_digests = {record.digest for record in listed}
        records += [
            _with_result(_begun(run, results.get(digest)), results, None)
            for digest, run in runs.items()
            if digest not in listed_digests
            and run.tags.get("carft.generation", sweep.generation) == sweep.generation
        ]
    lacking = {r.digest for r in records if r.state == "done"} - results.keys()
    warnings = []
    if settings is None and runs:
        lost = HAS_SETTINGS in sweep.run.tags and not is_running
        why = "it has not ended"
        if lost:
            why = (
                f"its {SETTINGS} is not at {sweep.run.artifacts}, where the server says, or is of "
                "an earlier generation"
            )
        warnings.append(f"of {sweep.name} only the runs that have begun are known: {why}")
    if lacking:
        have, are = ("run has", "is") if len(lacking) == 1 else ("runs have", "are")
        digests = ", ".join(sorted(digest[:12] for digest in lacking)[:_NAMED])
        more = ", ..." if len(lacking) > _NAMED else ""
        warnings.append(
            f"{len(lacking)} finished {have} no {RESULT} on the server and {are} left out: "
            f"{digests}{more}"
        )
    return SweepRuns(
        sweep=name,
        records=[record for record in records if record.digest not in lacking],
        spec=_spec(sweep),
        fields={digest: result.fields for digest, result in results.items()},
        warnings=tuple(warnings),
    )


def _with_result(
    record: RunRecord, results: Mapping[str, Result], merges: Collection[str] | None
) -> RunRecord:
    """Add what was measured, of these merges or of all."""
    result = results.get(record.digest)
    if result is None:
        return replace(record, metrics={}, merges={}, facts={})
    measured = {
        label: metrics
        for label, metrics in result.merges.items()
        if merges is None or label in merges
    }
    return replace(record, metrics=result.metrics, merges=measured, facts=result.facts)


def _begun(run: ServedRun, result: Result | None) -> RunRecord:
    """Make the record of a run that its sweep has not listed yet from its tags and parameters."""
    seed, trial = run.tags.get("carft.seed", "none"), run.tags.get("carft.trial", "none")
    return RunRecord(
        algorithm=run.tags.get("carft.algorithm", "unknown"),
        params=_params(run) if result is None else result.params,
        seed=int(seed) if seed.isdigit() else None,
        digest=run.digest,
        state=run.state,
        role=cast(Role, run.tags.get("carft.role", "trial")),
        trial=int(trial) if trial.isdigit() else None,
        untrained=run.tags.get(TRAINS) == "false",
    )


def _params(run: ServedRun) -> dict[str, Scalar]:
    """Parse parameters as `mlflow_limits.param` writes them."""
    params: dict[str, Scalar] = {}
    for name, text in run.params.items():
        if name in ("algorithm", "seed"):
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        params[name] = text if isinstance(value, (dict, list)) else value
    return params


def _spec(sweep: ServedSweep) -> ComparisonSpec:
    try:
        return read_spec(sweep.run.tags.get(RULE, ""))
    except TrackingError as error:
        raise TrackingError(f"{sweep.name}, tag {RULE}: {error}") from None


THREADS = 8
PAGE = 1000
"""Runs in one answer."""


class MlflowReader:
    """Reader of one experiment of an MLflow server or database.

    Raises:
        ServiceUnreachable: Nothing answers.
        TrackingError: The place cannot be used, or has no such experiment.
    """

    def __init__(self, uri: str, experiment: str = EXPERIMENT) -> None:
        self._uri = uri
        self._client = connect(uri)
        with translated(uri):
            experiment_id = find_experiment(self._client, uri, experiment)
            if experiment_id is None:
                names = [each.name for each in self._client.search_experiments()]
                text = unknown_name("experiment", experiment, names)
                raise TrackingError(f"{without_password(uri)}: {text} See --experiment.")
        self._experiment = experiment_id

    def sweeps(self) -> list[ServedSweep]:
        """List every sweep in the order in which they were begun."""
        # An answer that was lost may have left a second run of a sweep: the first one is meant.
        first: dict[tuple[str, str], ServedSweep] = {}
        for run in self._search({"carft.kind": "sweep"}):
            sweep = ServedSweep(_plain(run), run.info.run_id, run.info.start_time)
            first.setdefault((sweep.name, sweep.home), sweep)
        return list(first.values())

    def part(self, sweep: ServedSweep, name: str | None = None) -> SweepRuns:
        """Read a sweep's runs and how it judges, under `name` (its own)."""
        runs: dict[str, ServedRun] = {}
        # Beside them the sweep has runs that summarise its arms: these are computed anew.
        children = {"mlflow.parentRunId": sweep.run_id, "carft.kind": "run"}
        for run in map(_plain, self._search(children)):
            runs.setdefault(run.digest, run)
        with TemporaryDirectory() as folder:
            settings, results = self._files(sweep, runs, Path(folder))
        return read_part(sweep, runs, settings, results, name or sweep.name)

    def _files(
        self, sweep: ServedSweep, runs: Mapping[str, ServedRun], folder: Path
    ) -> tuple[Settings | None, dict[str, Result]]:
        """Download the list of the sweep's runs, and the results of those that are done.

        Each into a folder of its number: a run's digest is a tag, which on a server anybody sets.
        """

        def text(number: int, run: ServedRun, name: str, tag: str) -> str | None:
            if run.tags.get(tag) != name:
                return None
            return self._text(run.artifacts, name, folder / str(number))

        with ThreadPoolExecutor(THREADS) as pool:
            results = pool.map(
                lambda number, run: text(number, run, RESULT, HAS_RESULT),
                range(1, len(runs) + 1),
                runs.values(),
            )
            listed = text(0, sweep.run, SETTINGS, HAS_SETTINGS)
            by_digest = {
                digest: result
                for digest, content in zip(runs, results, strict=True)
                if content is not None and (result := read_result(content)) is not None
            }
        return None if listed is None else read_settings(listed), by_digest

    def _text(self, place: str, name: str, folder: Path) -> str | None:
        """Read an artifact below `place`; None when it is gone."""
        from mlflow.artifacts import download_artifacts, list_artifacts
        from mlflow.exceptions import MlflowException

        with translated(self._uri):
            try:
                file = download_artifacts(
                    artifact_uri=f"{place}/{name}", dst_path=str(folder), tracking_uri=self._uri
                )
                return Path(file).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                # Each kind of store says in another way that there is no such file.
                entries = list_artifacts(artifact_uri=place, tracking_uri=self._uri)
                if any(entry.path == name for entry in entries):
                    raise
                return None

    def _search(self, tags: Mapping[str, str]) -> Iterator[Run]:
        """Yield every run with these tags, in the order in which they were begun."""
        token: str | None = None
        while True:
            with translated(self._uri):
                page = self._client.search_runs(
                    [self._experiment],
                    mlflow_store.query_of(tags),
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return


def _plain(run: Run) -> ServedRun:
    return ServedRun(
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        artifacts=run.info.artifact_uri,
    )


def load_comparison(
    *sweeps: str,
    home: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    conditions: Sequence[str] = (),
    reference: str = REFERENCE,
    spec: ComparisonSpec | None = None,
) -> Comparison:
    """Load the comparison of one sweep, or of several as one, from MLflow.

    What the folders of runs hold (predictions, curves) is there as long as they lie in the home.

    Args:
        sweeps: Names, or `NAME@HOME` where several homes on a server have one.
        home: The home whose place the runs are read from (CARFT_HOME, `.carft`).
        tracking_uri: Another place to read them from.
        experiment: The experiment there.
        conditions: Those of `compare --where`, such as `kl_weight>=0.3`.
        reference: The algorithm to compare with.
        spec: How to select and test, before that of the sweeps.

    Raises:
        TrackingError: A sweep is unknown, the sweeps judge differently, or another account could
            have written the home and CARFT_SHARED_HOMES does not name it.
        ServiceUnreachable: The server does not answer.
    """
    if not sweeps:
        raise TypeError("load_comparison needs the name of a sweep")
    parts = read_sweeps(tracking_uri, experiment, sweeps) if tracking_uri else _of(home, sweeps)
    texts = [conditions] if isinstance(conditions, str) else conditions
    spec = spec or agreed({part.sweep: part.spec for part in parts})
    spec = spec.model_copy(update={"reference": reference})
    show_in_notebooks()
    return compare_sweeps(parts, spec, chosen=RunFilter.parse(texts))


def predictions(
    sweep: str | Comparison,
    *,
    home: str | Path | None = None,
    splits: str | Sequence[str] | None = None,
    settings: str | Sequence[str] | None = None,
    merges: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return what every model of a sweep predicts for every image, a row each.

    Columns: `split` (`id/test`, `ood/outline`), `shift` (`outline`; missing in distribution),
    `class` and `predicted` (names), `correct`, `confidence` (the probability of what is
    predicted), `setting` and `algorithm`, `seed` (missing where nothing is trained), `merge` and
    `alpha` (missing for the model that the run trained), and `image`, the path or key in its data.
    Sweep and data are in the frame's `attrs`.

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
        sweep: A name, or the comparison that `run_sweep` or `load_comparison` returned.
        home: Whose run folders, for a name (CARFT_HOME, `.carft`).
        splits: Only these, shifts also by their own names (`outline`).
        settings: Only these, or all of an algorithm (`car_ft`).
        merges: Only these: `wise_ft@0.5`, `wise_ft` of every alpha, `unmerged`.
        seeds: Only these, beside what no seed changes.

    Raises:
        TrackingError: A name is unknown, no run here keeps predictions, or there are more than
            20 million of them, which would not fit into memory.
    """
    comparison = load_comparison(sweep, home=home) if isinstance(sweep, str) else sweep
    return predictions_frame(
        comparison, splits=splits, settings=settings, merges=merges, seeds=seeds
    )


def read_sweeps(uri: str, experiment: str | None, sweeps: Sequence[str]) -> list[SweepRuns]:
    """Read sweeps by their names, or `NAME@HOME`, from a server or database."""
    reader = MlflowReader(uri, experiment or EXPERIMENT)
    every = reader.sweeps()
    return [reader.part(find(every, name), name) for name in dict.fromkeys(sweeps)]


def _of(home: str | Path | None, sweeps: Sequence[str]) -> list[SweepRuns]:
    """Read a home's own sweeps, also from a server that other homes use."""
    folder = home_folder(None if home is None else os.fspath(home))
    check_home(folder)
    place = resolve_location(folder)
    reader = MlflowReader(place.uri, place.experiment)
    every, own = reader.sweeps(), read_home_id(folder)
    parts = []
    for name in dict.fromkeys(sweeps):
        of_home = name if "@" in name or own is None else f"{name}@{own}"
        parts.append(_with_folders(reader.part(find(every, of_home), name), folder / "runs"))
    return parts


def _with_folders(part: SweepRuns, runs: Path) -> SweepRuns:
    """Add the folders of those runs that lie here."""
    records = [
        replace(record, folder=folder)
        if is_plain_name(record.digest) and (folder := runs / record.digest).is_dir()
        else record
        for record in part.records
    ]
    return replace(part, records=records)
