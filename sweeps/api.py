"""Run a sweep: open its engine and tracker, drive it, deliver, close."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from carft_core.errors import RequestError
from sweeps.engines.factory import make_engine
from sweeps.home import Home, find_home
from sweeps.ledger.generations import keep_address
from sweeps.results.export import log_selected
from sweeps.scheduler.progress import Progress, to_stderr
from sweeps.scheduler.session import Ended, execute
from sweeps.scheduler.webhook import Webhook, webhook_url
from sweeps.spec.spec import SweepSpec, load_spec
from sweeps.spec.user_code import resolve
from tracking.comparison.compare import Comparison
from tracking.errors import NotLetIn, ServiceUnreachable
from tracking.spool import Spool, open_tracking
from tracking.store.base import Tracker

PATIENCE = 30.0
"""Seconds that the end waits for the tracker to have everything."""


def perform(
    spec: SweepSpec,
    home: Home,
    progress: Progress,
    *,
    address: str | None = None,
    in_process: bool = False,
    webhook: str | None = None,
    notes: Sequence[str] = (),
    fresh: bool = False,
    failed_again: bool = False,
    ended: Callable[[Ended], None] = lambda _: None,
    undelivered: Callable[[str], None] = lambda _: None,
) -> Ended:
    """Execute a sweep, or go on with it.

    `address` is of the Ray cluster, where one was named; `resume` knows it again. `webhook` is the
    URL to tell. `ended` is called before the tracker is waited for, `undelivered` with what the
    tracking server has not got in the end, however it ends. Raises RequestError when the request
    cannot be met, ServiceUnreachable when no Ray answers or the database of the trials goes away,
    NotLetIn or TrackingError when the tracking server will not take runs as it is.
    """
    home.prepare()
    with (
        closing(progress),
        closing(
            make_engine(spec, address=address, in_process=in_process, home=home.path)
        ) as engine,
        closing(Webhook(webhook, progress.note)) as hook,
        _tracking(home, undelivered) as tracker,
    ):
        for note in notes:
            progress.note(note)

        def claimed() -> None:
            tracker.take_up(spec.name)
            keep_address(home.sweep(spec.name), address)

        _reach(tracker, progress)
        found = execute(
            spec,
            home,
            engine,
            tracker,
            progress,
            fresh=fresh,
            failed_again=failed_again,
            claimed=claimed,
            webhook=hook,
        )
        progress.close()
        ended(found)
        if _delivered(tracker, found):
            _keep_model(spec, home, found, progress)
    return found


@contextmanager
def _tracking(home: Home, undelivered: Callable[[str], None]) -> Iterator[Spool]:
    """The tracker of a home; what it could not deliver is reported at the end."""
    tracker = open_tracking(home.path)
    try:
        yield tracker
    finally:
        behind, reason = tracker.behind(), tracker.last_error or "slow"
        refused, kept = tracker.rejected(), tracker.rejected_files()
        tracker.close()
        if refused:
            undelivered(
                f"the tracking server refused {refused} records; they are kept, with the reasons, "
                f"in {', '.join(map(str, kept))}"
            )
        if behind:
            undelivered(
                f"{behind} records still wait for the tracking server ({reason}); nothing is "
                "lost: `carft-sweep sync` or the next run delivers them"
            )


def _reach(tracker: Tracker, progress: Progress) -> None:
    """One that will not have us ends it. One that is away may come back meanwhile, and one whose
    name nobody knows on a node without a network is known where `sync` is called.
    """
    try:
        tracker.reach()
    except ServiceUnreachable as away:
        if isinstance(away, NotLetIn):
            raise
        progress.note(f"{away}. The sweep goes on; what is told waits in the home meanwhile")


def _delivered(tracker: Spool, found: Ended) -> bool:
    """Whether the tracker has everything. Where somebody wants it to end, and Slurm kills it soon,
    a server that is away is not waited for.
    """
    haste = found.interrupted and tracker.last_error is not None
    return tracker.flush(0.0 if haste else PATIENCE)


def _keep_model(spec: SweepSpec, home: Home, found: Ended, progress: Progress) -> None:
    """The selected model in MLflow, whose runs are there now."""
    if found.state == "done" and spec.report.model:
        told = log_selected(home, spec, found.comparison)
        if told is not None:
            progress.note(told)


class SweepFailed(RuntimeError):
    """No run of a sweep succeeded, or its breaker stopped it; the message says why."""


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    home: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    address: str | None = None,
    in_process: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Run a sweep, or go on with it, and return the comparison that it ends with.

    `sweep` is a sweep file, a shipped recipe's name, or a sweep file's content as a mapping. `home`
    is the folder of state, as `--home`; `overrides` are keys of the file with other values, as
    `--set` (`{"seeds": 5, "trial.optim.epochs": 3}`); `imports`, `address`, `in_process` and
    `fresh` are as the options of `carft-sweep run`. Progress goes to standard error unless `quiet`.

    An interruption (the notebook's stop button) ends the sweep after its epoch and returns what
    there is so far, with a warning; the same call goes on. Raises RequestError for a wrong
    request, with every mistake in it, and SweepFailed when no run succeeded.
    """
    place = find_home(None if home is None else os.fspath(home))
    spec = _loaded(sweep, overrides or {}, imports)
    ended = perform(
        spec,
        place,
        Progress(to_stderr, quiet=quiet),
        address=address,
        in_process=in_process,
        webhook=webhook_url(spec.webhook),
        fresh=fresh,
        undelivered=lambda text: warnings.warn(text, stacklevel=2),
    )
    if ended.state == "failed":
        raise SweepFailed(_why(ended))
    if ended.interrupted:
        warnings.warn(
            f"{spec.name} was interrupted; the same call goes on with it. Its comparison so far "
            "is returned",
            stacklevel=2,
        )
    return ended.comparison


def _loaded(
    sweep: str | Path | Mapping[str, Any], overrides: Mapping[str, Any], imports: Sequence[str]
) -> SweepSpec:
    texts = [f"{key}={_json(value)}" for key, value in overrides.items()]
    modules = resolve(imports, Path.cwd())
    if not isinstance(sweep, Mapping):
        return load_spec(sweep, texts, modules)
    # Only a name for the messages: the text is what counts, and is kept with the results.
    source = Path.cwd() / f"{sweep.get('name', 'sweep')}.yaml"
    return load_spec(source, texts, modules, text=_json(sweep, indent=2))


def _json(value: object, indent: int | None = None) -> str:
    """Write plain data as JSON, which is YAML 1.2 too: every text stays a text.

    Raises RequestError for what no sweep file can hold.
    """
    try:
        # YAML takes no pairs of surrogates, as JSON escapes an emoji.
        return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"a sweep holds numbers, texts, lists and mappings only, as its file does: {error}"
        ) from None


def _why(ended: Ended) -> str:
    if ended.broken is not None:
        return f"{ended.comparison.sweep} was given up: {ended.broken}"
    causes = "; ".join(dict.fromkeys(ended.failures)) or "nothing was run"
    return f"no run of {ended.comparison.sweep} succeeded: {causes}"
