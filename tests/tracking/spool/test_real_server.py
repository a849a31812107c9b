"""A real MLflow server that is killed amid spooling."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from tests.services.processes import end
from tests.tracking.spool.troubled import CHILD, NOW, PARENT, RUN, SWEEP, loss
from tests.tracking.subjects import all_runs, look_into_mlflow, points
from tracking.spool import Spool
from tracking.store.mlflow_store import MlflowStore
from tracking.ui_server import Server, serve


def kill(server: Server) -> None:
    """As a lack of memory would; what is left of it is tidied up."""
    assert server.process is not None
    end(server.process)
    server.stop()


def test_a_server_killed_amid_spooling_has_everything_once_in_the_end(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # MLflow's code, slower with it
    shutil.copy(migrated, tmp_path / "mlflow.db")
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts"
    server = serve(uri, artifacts, port=0)
    port = int(server.address.rsplit(":", 1)[1])
    experiment = f"test-{uuid.uuid4().hex}"
    spool = Spool(
        MlflowStore(server.address, experiment), tmp_path / "spool", pace=0.05, longest_pause=0.5
    )
    try:
        spool.open(PARENT)
        spool.open(CHILD)
        for step in range(60):
            spool.metrics(RUN, [loss(step)])
            if step == 20:
                assert spool.flush(30)
                spool.metrics(RUN, [loss(1000)])
                kill(server)
                spool.metrics(RUN, [loss(1001)])
                assert not spool.flush(1)
                assert spool.last_error is not None
        spool.tags(RUN, {"late": "told while it was away"})
        assert spool.behind() > 40
        server = serve(uri, artifacts, port=port)
        assert server.address.endswith(f":{port}")
        spool.end(RUN, "finished", timestamp=NOW + 60)
        spool.end(SWEEP, "finished", timestamp=NOW + 60)
        assert spool.flush(60)
        seen = look_into_mlflow(server.address, experiment)(RUN)
        assert seen is not None
        expected = [(step, NOW + step, 1 / (step + 1)) for step in [*range(60), 1000, 1001]]
        assert seen.history == {"train/loss": points(expected)}
        assert seen.tags == {"late": "told while it was away"}
        assert {run.info.status for run in all_runs(server.address, experiment)} == {"FINISHED"}
        assert len(all_runs(server.address, experiment)) == 2
    finally:
        spool.close()
        kill(server)
