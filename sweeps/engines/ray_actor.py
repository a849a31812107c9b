"""What runs on a node: an actor of Ray Tune around a worker process, which stays warm."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from sweeps.engines.base import Decision, Failure
from sweeps.engines.supervision import ENDS, Event, Supervisor

STEP = 2.0
"""Seconds that a step waits for something to tell: what a stop at once may take."""


class WarmRun(Trainable):
    """Steps through the events of one run, then of the next.

    A step that ends with a report is answered by the next one: go on, unless `decide` said else.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """See Trainable. Nothing of the run begins before its first step."""
        self._supervisor = Supervisor(
            **json.loads(config["supervision"]), place=f"ray:{socket.gethostname()}"
        )
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See Trainable: the next run, in the same worker process."""
        self._job: Mapping[str, Any] = json.loads(new_config["job"])
        self._begun = False
        self._decision: Decision | None = None
        return True

    def step(self) -> dict[str, Any]:
        """See Trainable. The events of the next moment, as JSON."""
        return {"events": json.dumps(list(self._events()))}

    def decide(self, decision: str) -> None:
        """What the run that has just reported is to do."""
        self._decision = Decision(decision)

    def cleanup(self) -> None:
        """See Trainable."""
        self._supervisor.close()

    def _events(self) -> Iterator[Event]:
        if not self._begun:
            runs = Path(self._job["workdir"]).parent
            if not runs.is_dir():  # or results would be written where nobody looks for them
                yield _not_shared(runs)
                return
            self._supervisor.begin(self._job)
            self._begun = True
        elif self._decision is not None:
            self._supervisor.answer(self._decision)
        self._decision = None
        until = time.monotonic() + STEP
        while (left := until - time.monotonic()) > 0:
            event = self._supervisor.next(left)
            if event is None:
                continue
            yield event
            if event["kind"] == "report":
                self._decision = Decision.CONTINUE
            if event["kind"] == "report" or event["kind"] in ENDS:
                return


def _not_shared(runs: Path) -> Event:
    node = socket.gethostname()
    message = f"{node} does not share the folder {runs} with the driver: it must be shared storage"
    return {"kind": "failed", "failure": vars(Failure("crashed", message, "", node))}
