"""Run a sweep: open its engine and tracker, drive it, deliver, close."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.data.base import forget_data
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.factory import make_engine
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.optuna_copy import check_storage
from carft_sweep.sweeps.ledger.status import best_points
from carft_sweep.sweeps.scheduler.progress import Progress, to_stderr
from carft_sweep.sweeps.scheduler.session import RunOptions, SweepResult, drive_sweep
from carft_sweep.sweeps.spec.spec import BestOf, SweepSpec, load_spec
from carft_sweep.sweeps.spec.user_code import refuse_unimported
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable
from carft_sweep.tracking.report.html import show_in_notebooks
from carft_sweep.tracking.store.base import Tracker
from carft_sweep.tracking.store.mlflow_store import open_store


def run_with_services(
    spec: SweepSpec,
    home: Home,
    progress: Progress,
    options: RunOptions,
    *,
    in_process: bool = False,
    notes: Sequence[str] = (),
) -> SweepResult:
    """Run a sweep, or resume it, and return its result. `in_process` uses no worker processes;
    `notes` are shown first.


    Raises RequestError when the sweep cannot be run as requested, ServiceUnreachable when no Ray
    answers, AccessDenied or TrackingError when the tracking server refuses runs.
    """
    home.prepare()
    check_storage()
    make = partial(make_engine, spec, address=options.address, home=home.path)
    with (
        closing(progress),
        closing(make(in_process=in_process)) as engine,
        closing(open_store(home.path, experiment=spec.experiment)) as store,
    ):
        engine.start()
        for note in notes:
            progress.note(note)
        _preflight(store, progress)
        return drive_sweep(spec, home, engine, store, progress, options)


def _preflight(store: Tracker, progress: Progress) -> None:
    """Check that the tracking server accepts runs. Raises on rejected credentials; continues if the
    server is unreachable or its host unknown, since records can be sent later."""
    try:
        store.preflight()
    except ServiceUnreachable as away:
        if isinstance(away, AccessDenied):
            raise
        progress.note(f"{away}. The sweep runs all the same; its runs are sent when it answers")


class SweepFailed(RuntimeError):
    """No run of a sweep succeeded, or its breaker stopped it; the message says why."""


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    home: str | Path | None = None,
    trust_home: bool = False,
    overrides: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    address: str | None = None,
    in_process: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Run a sweep, or resume it, and return the final comparison.

    `sweep` is a sweep file, a shipped recipe's name, or a sweep file's content as a mapping. `home`
    is the folder of state, as `--home`; `trust_home` uses a home that others own or may write, as
    `--trust-home`; `overrides` are keys of the file with other values, as `--set` (`{"seeds": 5,
    "trial.optim.epochs": 3}`); `imports`, `address`, `in_process` and `fresh` are as the options of
    `carft-sweep run`. Progress goes to standard error unless `quiet`.

    An interruption (the notebook's stop button) ends the sweep after its epoch and returns the
    comparison so far, with a warning; the same call resumes the sweep. Raises RequestError for a
    wrong request, with every mistake, and SweepFailed when no run succeeded.
    """
    forget_data()  # in a notebook files change between two calls
    place = find_home(home, trust=trust_home)
    spec = _loaded(sweep, overrides or {}, imports, partial(best_points, place))
    warn = partial(warnings.warn, stacklevel=2)
    progress = Progress(to_stderr, quiet=quiet)
    options = RunOptions(address=address, fresh=fresh, undelivered=warn)
    result = run_with_services(spec, place, progress, options, in_process=in_process)
    if result.state == "failed":
        raise SweepFailed(_why(result))
    if result.state == "interrupted":
        warn(
            f"{spec.name} was interrupted; the same call resumes it. Its comparison so far is "
            "returned"
        )
    show_in_notebooks()
    return result.comparison


def _loaded(
    sweep: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any],
    imports: Sequence[str],
    best_of: BestOf | None = None,
) -> SweepSpec:
    texts = [f"{key}={_json(value)}" for key, value in overrides.items()]
    if isinstance(sweep, Mapping):
        # Only a name for the messages: the text is what counts, and is kept with the results.
        source = Path.cwd() / f"{sweep.get('name', 'sweep')}.yaml"
        spec = load_spec(source, texts, imports, text=_json(sweep, indent=2), best_of=best_of)
    else:
        spec = load_spec(sweep, texts, imports, best_of=best_of)
    refuse_unimported(spec.as_dict(), spec.imports)  # a notebook may have registered more names
    return spec


def _json(value: object, indent: int | None = None) -> str:
    """Return plain data as JSON, which is YAML 1.2 too: every text stays a text. Raises
    RequestError for data that no sweep file can hold."""
    try:
        # YAML takes no pairs of surrogates, as JSON escapes an emoji.
        return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"a sweep holds numbers, texts, lists and mappings only, as its file does: {error}"
        ) from None


def _why(result: SweepResult) -> str:
    if result.broken is not None:
        return f"{result.comparison.sweep} was stopped: {result.broken}"
    causes = "; ".join(dict.fromkeys(result.failures)) or "nothing was run"
    return f"no run of {result.comparison.sweep} succeeded: {causes}"
