"""`ui`: what it serves and says. The server itself: tests/tracking/test_ui_server.py."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sweeps.conftest import Carft, ToySweep

Started = dict[str, Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """What the server is started with; Ctrl-C ends it at once, and well."""
    options: Started = {}

    def serve(uri: str, artifacts: Path | None, **arguments: Any) -> Any:
        options.update(arguments, uri=uri, artifacts=artifacts)
        return SimpleNamespace(address="http://here:5000", process=object(), wait=interrupted)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carft_sweep.sweeps.cli.ui.serve", serve)
    monkeypatch.setenv("CARFT_HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    return options


def test_by_itself_it_is_this_machines_and_asks_for_nothing(started: Started, carft: Carft) -> None:
    printed = carft("ui").out
    assert ({*started}, started["port"]) == ({"uri", "artifacts", "port"}, 5000)
    starts, first, _, banner, warning, last = printed.splitlines()
    assert starts.startswith("MLflow's server starts")
    assert first == "MLflow shows experiment carft-sweep at http://here:5000"
    assert "usage data does not apply" in banner
    assert warning.startswith("Every account of this machine may read, change and delete every run")
    assert last == "Ctrl-C ends it."


def test_nothing_is_served_without_a_home_on_no_port_or_by_an_old_mlflow_and_no_password_is_shown(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    assert "there is no home" in carft("--home", tmp_path / "none", "ui", code=2).err
    printed = carft("ui", "--port", "70000", code=2).err
    assert "must be a number from 0 to 65535, got '70000'" in printed
    real = metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "requires", lambda _: ["mlflow<4,>=3.17"])
        patch.setattr(metadata, "version", lambda of: "3.9.0" if of == "mlflow" else real(of))
        printed = carft("ui", code=2).err
    assert "mlflow 3.9.0 is older than 3.17" in printed
    assert 'pip install "mlflow<4,>=3.17"' in printed
    assert started == {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@lab.example")
    assert "secret" not in carft("ui").out


def test_it_leads_to_the_pages_of_the_newest_sweeps(
    toy_cli: ToySweep, started: Started, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    del started
    monkeypatch.setenv("CARFT_HOME", str(toy_cli.home.path))
    monkeypatch.setattr("carft_sweep.sweeps.cli.ui.experiment_id", lambda *_: "7")
    toy_cli.run()
    toy_cli.run(name="second")
    (toy_cli.home.sweep("second") / "report.html").write_text("<p>")
    page = "http://here:5000/#/experiments/7/runs"
    training = "workflowType=machine_learning"
    assert carft("ui").out.splitlines()[:-4] == [
        "MLflow's server starts; on a busy machine that takes minutes.",
        f"MLflow shows experiment carft-sweep at {page}?{training}&viewStateShareKey=carft-sweeps",
        "second",
        f"  arms    {page}?{training}&viewStateShareKey=second/",
        f"  sweep   {page}/second/?{training}",
        f"  report  {page}/second//artifacts/report.html?{training}",
        "toy",
        f"  arms    {page}?{training}&viewStateShareKey=toy/",
        f"  sweep   {page}/toy/?{training}",
    ]
