"""`ui`: whom it lets in, and what it says of it. The server itself: tests/tracking/test_ui.py."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carft_sweep.sweeps.cli import main
from tests.sweeps.conftest import Carft, ToySweep

Started = dict[str, Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """What the server is started with; Ctrl-C ends it at once, and well."""
    told: Started = {}

    def serve(uri: str, artifacts: Path | None, **how: Any) -> Any:
        told.update(how, uri=uri, artifacts=artifacts)
        return SimpleNamespace(address="http://here:5000", process=object(), wait=interrupted)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carft_sweep.sweeps.cli.ui.serve", serve)
    monkeypatch.setenv("CARFT_HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "CARFT_UI_PASSWORD", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    return told


def test_by_itself_it_is_this_machines_and_asks_for_nothing(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui"]) == 0
    assert {**started, "uri": "", "artifacts": None} == {
        "uri": "",
        "artifacts": None,
        "host": "127.0.0.1",
        "port": 5000,
        "names": (),
        "users": None,
        "prefix": "",
    }
    first, banner, warning, last = capsys.readouterr().out.splitlines()
    assert first == "MLflow shows experiment carft-sweep at http://here:5000"
    assert "usage data does not apply" in banner
    assert warning.startswith("Every account of this machine may read, change and delete every run")
    assert last == "Ctrl-C ends it."


def test_where_there_is_no_home_there_is_nothing_to_serve(
    started: Started, tmp_path: Path, carft: Carft
) -> None:
    assert "there is no home" in carft("--home", tmp_path / "none", "ui", code=2).err
    assert started == {}


def test_a_server_of_somebody_else_has_users_of_its_own(
    started: Started, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@lab.example")
    told = carft("ui", "--auth", code=2).err
    assert "names a server, https://lab.example, and ui then starts none" in told
    assert "secret" not in told
    assert started == {}
    assert main(["ui"]) == 0


def test_an_mlflow_with_known_holes_is_not_served(
    started: Started, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda _: ["mlflow<4,>=3.17"])
    monkeypatch.setattr(
        metadata, "version", lambda name: "3.9.0" if name == "mlflow" else real(name)
    )
    assert "mlflow 3.9.0 is older than 3.17" in (message := carft("ui", code=2).err)
    assert 'pip install "mlflow<4,>=3.17"' in message
    assert started == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "lab", ""])
def test_strangers_are_let_in_on_request_alone(started: Started, host: str, carft: Carft) -> None:
    assert (
        "add --auth, which asks for a password, or --no-auth"
        in carft("ui", "--host", host, code=2).err
    )
    assert started == {}
    assert "may read, change and delete every run" in carft("ui", "--host", host, "--no-auth").out


def test_with_auth_it_needs_a_password_and_shows_none(
    started: Started, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    hosts = ["--allowed-hosts", "mlflow.lab.example, lab.example:8443"]
    words = ["ui", "--auth", "--host", "0.0.0.0", *hosts, "--static-prefix", "/mlflow"]
    assert (
        "12 characters or more: in CARFT_UI_PASSWORD, in a file that" in carft(*words, code=2).err
    )
    assert started == {}
    monkeypatch.setenv("CARFT_UI_PASSWORD", "a password of mine")
    assert "a password of mine" not in carft(*words).out
    assert started["users"].environ["MLFLOW_AUTH_ADMIN_PASSWORD"] == "a password of mine"
    assert started["names"] == ("mlflow.lab.example", "lab.example:8443")
    assert started["prefix"] == "/mlflow"


def test_on_a_terminal_the_password_is_asked_for_twice(
    started: Started, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    answers = ["one password of mine", "another one, mistyped"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: answers.pop(0))
    assert "the two passwords differ" in carft("ui", "--auth", code=2).err
    answers[:] = ["one password of mine"] * 2
    assert main(["ui", "--auth"]) == 0
    assert started["users"].environ["MLFLOW_AUTH_ADMIN_PASSWORD"] == "one password of mine"
    answers[:] = ["", ""]
    assert main(["ui", "--auth"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allowed-hosts", "*.lab.example"], "name each host"),
        (["--allowed-hosts", "[fd00::7]:5000"], "give it a name"),
        (["--host", "fd00::7", "--auth"], "do not open under an IPv6 address"),
        (["--allowed-hosts", "lab,http://lab"], "'http://lab' is no host"),
        (["--static-prefix", "/mlflow/"], "must be a path such as /mlflow"),
        (["--port", "70000"], "must be a number from 0 to 65535, got '70000'"),
        (["--auth", "--no-auth"], "not allowed with argument --auth"),
    ],
)
def test_what_cannot_be_served_is_refused(
    started: Started, options: list[str], said: str, carft: Carft
) -> None:
    assert said in carft("ui", *options, code=2).err
    assert started == {}


def test_it_leads_to_the_pages_of_the_newest_sweeps(
    toy_cli: ToySweep,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del started
    monkeypatch.setenv("CARFT_HOME", str(toy_cli.home.path))
    monkeypatch.setattr("carft_sweep.sweeps.cli.ui.experiment_id", lambda *_: "7")
    toy_cli.run()
    toy_cli.run(name="second")
    (toy_cli.home.sweep("second") / "report.html").write_text("<p>")
    assert main(["ui"]) == 0
    page = "http://here:5000/#/experiments/7/runs"
    training = "workflowType=machine_learning"
    assert capsys.readouterr().out.splitlines()[:-3] == [
        f"MLflow shows experiment carft-sweep at {page}?{training}&viewStateShareKey=carft-sweeps",
        "second",
        f"  arms    {page}?{training}&viewStateShareKey=second/",
        f"  sweep   {page}/second/?{training}",
        f"  report  {page}/second//artifacts/report.html?{training}",
        "toy",
        f"  arms    {page}?{training}&viewStateShareKey=toy/",
        f"  sweep   {page}/toy/?{training}",
    ]
