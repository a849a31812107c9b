"""A sweep performed from here: its engine and its tracker opened, used and closed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sweeps.as_run import keep_address
from sweeps.engines.choose import choose
from sweeps.exporting import log_selected
from sweeps.home import Home
from sweeps.progress import Progress
from sweeps.session import Ended, execute
from sweeps.spec import SweepSpec
from sweeps.webhook import Webhook
from tracking.base import NotLetIn, ServiceUnreachable, Tracker
from tracking.spool import Spool
from tracking.where import open_tracking

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
    engine = choose(spec, address=address, in_process=in_process, home=home.path)
    for note in notes:
        progress.note(note)
    hook, tracker = Webhook(webhook, progress.note), open_tracking(home.path)

    def claimed() -> None:
        tracker.take_up(spec.name)
        keep_address(home.sweep(spec.name), address)

    try:
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
    finally:
        engine.close()
        progress.close()
        hook.close()
        behind, reason = tracker.behind(), tracker.last_error or "slow"
        tracker.close()
        if behind:
            undelivered(
                f"{behind} records still wait for the tracking server ({reason}); nothing is "
                "lost: `carft-sweep sync` or the next run delivers them"
            )
    return found


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
