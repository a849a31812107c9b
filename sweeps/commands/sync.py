"""`carft-sweep sync`: deliver to the tracking server what it missed while it was away."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sweeps.claim import holder
from sweeps.home import Home, find_home
from sweeps.known import sweep_folder
from tracking.base import ServiceUnreachable
from tracking.journal import records_behind, sweeps_behind
from tracking.where import Where, open_tracking, where, without_password

Say = Callable[[str], None]
LOOK = 1.0
"""Seconds between two looks at how far the delivery is."""


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises ServiceUnreachable when the server does not answer."""
    home = find_home(arguments.home)
    place = where(home.path)
    for name in arguments.sweeps:
        sweep_folder(home, name)
    waiting = sweeps_behind(place.spool)
    if arguments.sweeps:
        waiting = [name for name in waiting if name in arguments.sweeps]
    todo = []
    for name in waiting:
        driver = holder(home.sweep(name))
        if driver is None:
            todo.append(name)
        else:
            say(f"{name} is being run by {driver}, which delivers what waits.")
    if todo:
        _deliver(home, {name: records_behind(place.spool, name) for name in todo}, say)
    elif not waiting:
        say(f"Nothing waits for {without_password(place.uri)}.")
    for line in _elsewhere(home, place):
        say(line)
    return 0


def _deliver(home: Home, waiting: Mapping[str, int], say: Say) -> None:
    """Deliver so many records of each sweep."""
    tracker = open_tracking(home.path)
    try:
        for name in waiting:
            tracker.take_up(name)
        while not tracker.flush(LOOK):
            if tracker.last_error is not None:
                left, all_of_them = tracker.behind(), sum(waiting.values())
                raise ServiceUnreachable(
                    f"{tracker.last_error}; {all_of_them - left} of {all_of_them} records were "
                    f"delivered, {left} are left ({', '.join(waiting)}). Nothing is lost: sync "
                    "again when the server answers"
                )
        refused = tracker.rejected()
    finally:
        tracker.close()
    for name, count in waiting.items():
        say(f"{name}: {count} records delivered, none left.")
    if refused:
        say(f"{refused} of them were refused; they are kept, with the reasons, in the spool.")


def _elsewhere(home: Home, place: Where) -> Iterator[str]:
    """What waits for another server or experiment than the environment names now."""
    spool = home.path.resolve() / "spool"
    folders = [spool, *(path for path in spool.glob("*") if _is_of_a_place(path))]
    for folder in folders:
        names = [] if folder == place.spool else sweeps_behind(folder)
        if names:
            named = "the home's own database" if folder == spool else "another tracking server"
            yield (
                f"Records of {', '.join(names)} wait for {named}: set MLFLOW_TRACKING_URI and "
                "MLFLOW_EXPERIMENT_NAME as they were for the run, then sync again."
            )


def _is_of_a_place(path: Path) -> bool:
    return path.is_dir() and not path.name.endswith(".files")
