"""Runs executed on Ray: Ray Tune owns the loop and says where actors run, and nothing more.

Nothing that Tune keeps is needed to go on after a crash; that is in the runs' own folders
(docs/decisions/0006-ray-holds-worker-processes.md).
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from sweeps.engines.base import Engine, Handler
from sweeps.engines.ray_actor import WarmRun
from sweeps.engines.ray_cluster import Cluster, signals_kept
from sweeps.engines.ray_loop import Asking, Loop, Place, Stop, Telling
from sweeps.engines.supervision import SILENCE, environ_for
from sweeps.engines.training import CORE
from sweeps.hardware import Hardware, hardware_of
from sweeps.resources import Need, Node
from tracking.quiet import quieted

_NEVER = str(10**9)
_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the session's handlers call `stop`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": _NEVER,
    "TUNE_MAX_PENDING_TRIALS_PG": _NEVER,  # the searcher knows how many fit
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": _NEVER,
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": _NEVER,
    "TUNE_WARN_THRESHOLD_S": _NEVER,
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class RayEngine(Engine):
    """As many runs at once as the cluster holds, each in the warm worker process of an actor.

    `need` is what one run takes, `supply` the nodes with what they say of their GPUs (None: as Ray
    lists them), `parallel` the most runs at once (None: any); `silence` and `timeout`, in seconds,
    are as for the local engine.
    """

    def __init__(
        self,
        cluster: Cluster,
        need: Need,
        entry: str = CORE,
        *,
        supply: Sequence[Node] | None = None,
        parallel: int | None = None,
        silence: float = SILENCE,
        timeout: float | None = None,
    ) -> None:
        supervision = {
            "entry": entry,
            "silence": silence,
            "timeout": timeout,
            "environ": environ_for(int(need.cpus), need.gpus),
            "cwd": str(Path.cwd()),
        }
        self._place = Place(cluster, need, parallel, silence, json.dumps(supervision))
        self._stop = Stop()
        self._hardware = hardware_of(need, cluster.nodes() if supply is None else supply)

    @property
    def hardware(self) -> Hardware:
        """See Engine."""
        return self._hardware

    def run(self, handler: Handler) -> None:
        """See Engine."""
        loop = Loop(handler, self._place, self._stop)
        with _quiet(), signals_kept():
            try:
                self._tune(loop)
            except Exception:
                if loop.error is None:
                    raise
        if loop.error is not None:  # as the handler raised it: Tune wraps it, or goes on
            raise loop.error

    def stop(self, *, now: bool = False) -> None:
        """See Engine."""
        self._stop.asked = True
        self._stop.now = self._stop.now or now

    def close(self) -> None:
        """See Engine."""
        self._place.cluster.close()

    def _tune(self, loop: Loop) -> None:
        need = self._place.need
        bundle = {"CPU": need.cpus, "GPU": need.gpus, **need.custom}
        tune.run(
            WarmRun,
            name=uuid.uuid4().hex,
            num_samples=-1,
            search_alg=Asking(loop),
            scheduler=Telling(loop),
            resources_per_trial=tune.PlacementGroupFactory([bundle]),
            reuse_actors=True,
            max_failures=0,  # it cannot tell one failure from another
            raise_on_failed_trial=False,
            storage_path=str(self._place.cluster.scratch),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            verbose=0,
            callbacks=[_Silent()],
        )


class _Silent(TrialProgressCallback):
    """In the place of the callback that prints, whatever `verbose` says."""

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        """See Callback."""

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        """See Callback."""

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """See Callback."""


def _name(trial: Trial) -> str:
    name: str = trial.trial_id
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune as it is set up here, and silent: what its user must know the handler is told."""
    # Ray prints to stdout what it thinks of nodes that went, whatever `log_to_driver` says.
    with (
        quieted("ray", logging.CRITICAL, _TUNE),
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
    ):
        yield
