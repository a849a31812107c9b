"""`submit` at the command line, where no cluster is needed, or a feigned one is enough."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli import main
from sweeps.submit import client as following
from tests.services.answering import Answer
from tests.sweeps.submit.conftest import Git
from tests.sweeps.submit.fake_head import FakeHead, fake_head

VERSION = {"GET /api/version": Answer({"ray_version": "2.99.0"})}
ENDED = {"submission_id": "a", "status": "FAILED", "driver_exit_code": 2, "message": "why"}


class Taking(dict[str, Answer]):
    """A cluster that takes every package and job; each job has ended, and printed a line."""

    def get(self, what: str, default: Any = None) -> Any:
        if what.startswith("GET /api/packages"):
            return Answer("Package x does not exist", 404)
        if what.endswith("/logs"):
            return Answer({"logs": "a line\n"})
        if what.startswith("GET /api/jobs/carft-"):
            return Answer(ENDED)
        if what == "POST /api/jobs/":
            return Answer({"submission_id": "carft-tiny-1"})
        return Answer("") if what.startswith("PUT") else super().get(what, default)


@pytest.fixture
def head(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    """One that takes everything, found by Ray's variable from within the project."""
    del project
    with fake_head(answers=Taking(VERSION)) as made:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", made.address)
        yield made


def request(head: FakeHead) -> dict[str, Any]:
    """What was asked for."""
    (body,) = (body for what, _, body in head.asked if what == "POST /api/jobs/")
    found: dict[str, Any] = json.loads(body)
    return found


def packed(head: FakeHead) -> set[str]:
    (body,) = (body for what, _, body in head.asked if what.startswith("PUT"))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return set(archive.namelist())


def test_a_repository_is_sent_and_its_job_followed_to_its_exit_code(
    git: Git,
    project: Path,
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    (project / "mine.py").write_text("X = 2\n")
    (project / "leak.txt").write_text("planted-password")
    assert main(["submit", "tiny.yaml", "--pip", "wandb", "--", "--webhook", "no"]) == 2
    asked = request(head)
    assert asked["entrypoint"].endswith("--home /shared/home --webhook no")
    assert asked["runtime_env"]["pip"] == ["wandb"]
    commit = f"{git('rev-parse', 'HEAD')}-dirty"
    assert asked["runtime_env"]["env_vars"]["CARFT_SOURCE_COMMIT"] == commit
    assert asked["metadata"]["carft_sweep"] == "tiny"
    assert asked["metadata"]["carft_commit"] == commit
    assert asked["submission_id"].startswith("carft-tiny-")
    assert packed(head) == {".gitignore", "mine.py", "tiny.yaml"}
    told = capsys.readouterr()
    assert told.out == "a line\n"
    assert "changed: mine.py\n" in told.err
    assert "not sent: leak.txt (holds a secret" in told.err
    assert "The cluster has Ray 2.99.0, this machine" in told.err
    assert "Not sent, since secret: MLFLOW_TRACKING_PASSWORD." in told.err
    assert "is failed." in told.err
    assert "planted" not in json.dumps(asked) + told.out + told.err


def test_without_a_repository_only_what_the_sweep_needs_is_sent(
    project: Path, head: FakeHead, capsys: pytest.CaptureFixture[str], registries: None
) -> None:
    del registries
    (project / "birds.family.yaml").write_text("name: birds\nroot: /d\ntrain: a\ntest: b\n")
    (project / "words.txt").write_text("a photo of a {}.\n")
    (project / "package").mkdir()
    for name in ("__init__.py", "part.py", "data.csv"):
        (project / "package" / name).write_text("")
    (project / "other.txt").write_text("no")
    (project / "tiny.yaml").write_text(
        "name: tiny\nimport: [./package]\nparameters: {prompts.contexts: {values: [words.txt]}}\n"
        "trial: {algorithm: fine_tune, data: {family: birds.family.yaml}}\n"
    )
    assert main(["submit", "tiny.yaml", "--no-wait", "--import", "mine.py"]) == 0
    assert packed(head) == {
        *("tiny.yaml", "birds.family.yaml", "words.txt", "mine.py"),
        *("package/__init__.py", "package/part.py"),
    }
    told = capsys.readouterr()
    assert told.out == "carft-tiny-1\n"
    assert "sent: words.txt\n" in told.err
    assert "--import mine.py" in request(head)["entrypoint"]


def test_a_recipe_needs_no_file(head: FakeHead, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "kl_weight", "--no-wait", "--json"]) == 0
    assert "working_dir" not in request(head)["runtime_env"]
    assert json.loads(capsys.readouterr().out) == {"id": "carft-tiny-1", "address": head.address}


def test_an_answer_that_was_lost_is_asked_for(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:

    class Losing(Taking):
        def get(self, what: str, default: Any = None) -> Any:
            lost = what == "POST /api/jobs/"
            return Answer("", 502) if lost else super().get(what, default)

    head.answers = Losing(VERSION)
    assert main(["submit", "kl_weight", "--no-wait"]) == 0
    assert capsys.readouterr().out == "a\n"


def test_a_job_that_nobody_took_is_no_job(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers, head.otherwise = dict(VERSION), Answer("", 502)
    assert main(["submit", "kl_weight"]) == 4
    assert "answers 502: the head is away" in capsys.readouterr().err


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.Follower, "follow", interrupted)
    assert main(["submit", "kl_weight"]) == 3
    told = capsys.readouterr().err
    assert "carft-tiny-1 goes on." in told
    assert f"--address {head.address} --logs carft-tiny-1 --follow" in told
    assert "--stop carft-tiny-1" in told
    assert not [what for what, *_ in head.asked if "stop" in what]


def test_a_cluster_that_stays_away_ends_with_4_and_the_way_back(
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(following, "PATIENCE", -1.0)
    head.answers, head.otherwise = {}, Answer("", 503)
    assert main(["submit", "--logs", "x", "--follow"]) == 4
    assert "The job may go on. To follow it: " in capsys.readouterr().err


def test_a_failure_before_the_sweep_is_told_with_its_reason(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {**ENDED, "message": "Failed to set up runtime environment", "driver_exit_code": None}
    head.answers = {"GET /api/jobs/a": Answer(failed), "GET /api/jobs/a/logs": Answer({"logs": ""})}
    assert main(["submit", "--logs", "a", "--follow", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["exit_code"] == 1
    assert "Failed to set up runtime environment\na is failed. the job's environment" in told.err
    assert main(["submit", "--status", "a"]) == 0
    assert "the job's environment could not be made" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "submit what?"),
        (("tiny.yaml", "--home", "here"), "the home here must be an absolute path"),
        (("tiny.yaml", "--status", "a"), "is asked for by its id alone"),
        (("tiny.yaml", "--follow"), "--follow goes with --logs ID"),
        (("tiny.yaml", "--image", "i"), "--image goes with --emit rayjob"),
        (("tiny.yaml", "--working-dir", "s3://x"), "--working-dir goes with --emit rayjob"),
        (("tiny.yaml", "--set", "engine=local"), "engine: local would leave the cluster idle"),
        (("tiny.yaml", "--set", "webhook=https://h/hidden-x"), "webhook: must be env:NAME"),
        (("tiny.yaml", "--data-root", "data"), "--data-root data: must be an absolute path"),
        (("tiny.yaml", "--", "--in-process"), "no --in-process and no --address"),
        (("tiny.yaml", "--", "--home", "/x"), "--home goes before `--`"),
        (("tiny.yaml", "--", "--nonsense"), "unknown option --nonsense"),
        (("tiny.yaml", "--only-committed"), "is in no git repository"),
        (("tiny.yaml", "--exclude", "*.yaml"), "tiny.yaml is needed, but is not among the files"),
        (("tiny.yaml", "--max-bundle", "much"), "must be a size like 50MB"),
        (("tiny.yaml", "--workers", "0"), "must be a whole number from 1 on"),
        (("tiny.yaml", "--pip", "ray"), "has the Ray of its cluster"),
        (("tiny.yam",), "did you mean tiny.yaml"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    head: FakeHead,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert main(["submit", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "hidden-x" not in told
    assert not [what for what, *_ in head.asked if not what.startswith("GET /api/version")]


def test_a_home_must_be_named(
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del head
    monkeypatch.delenv("CARFT_HOME")
    assert main(["submit", "tiny.yaml"]) == 2
    assert "where is the home? Give an absolute path" in capsys.readouterr().err


def test_a_file_that_git_ignores_is_missed_before_it_is(
    git: Git, project: Path, head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    del git, head
    (project / "ignored.yaml").write_text((project / "tiny.yaml").read_text())
    assert main(["submit", "ignored.yaml"]) == 2
    assert "not among the files that are sent (git ignores it)" in capsys.readouterr().err


def test_a_sweep_file_that_holds_a_secret_is_not_sent(
    project: Path,
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del head
    text = (project / "tiny.yaml").read_text()
    (project / "tiny.yaml").write_text(f"{text}webhook: https://host/hidden-x\n")
    assert main(["submit", "tiny.yaml"]) == 2
    told = capsys.readouterr().err
    assert "webhook: must be env:NAME, for a variable that holds the address" in told
    monkeypatch.setenv("SLACK_TOKEN", "hidden-x")
    (project / "tiny.yaml").write_text(f"{text}description: hidden-x\n")
    assert main(["submit", "tiny.yaml"]) == 2
    told += capsys.readouterr().err
    assert "tiny.yaml (holds a secret of this environment)" in told
    assert "hidden-x" not in told


def test_a_secret_in_an_option_is_not_sent(
    head: FakeHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLACK_TOKEN", "hidden-x")
    assert main(["submit", "kl_weight", "--set", "description=hidden-x"]) == 2
    told = capsys.readouterr().err
    assert "an option holds the value of a secret variable" in told
    assert "hidden-x" not in told
    assert not [what for what, *_ in head.asked if "POST" in what]


def test_a_module_outside_of_what_is_sent_is_refused(
    git: Git, project: Path, head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    del git, head
    (project.parent / "outside_of_it.py").write_text("")
    assert main(["submit", "tiny.yaml", "--import", "../outside_of_it.py"]) == 2
    assert f"lies outside of {project}, which is sent" in capsys.readouterr().err


def test_jobs_of_others_are_not_listed_and_an_ended_one_is_not_stopped(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = {"submission_id": None, "status": "RUNNING"}
    head.answers = {
        "GET /api/jobs/": Answer([driver, {**ENDED, "metadata": {"carft_sweep": "other"}}, ENDED]),
        "GET /api/jobs/a": Answer(ENDED),
    }
    assert main(["submit", "--list"]) == 0
    assert capsys.readouterr().out == "a  failed  exit code 2  sweep other\n"
    assert main(["submit", "--stop", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "a", "asked": False}
    head.answers = {"GET /api/jobs/": Answer([driver])}
    assert main(["submit", "--list"]) == 0
    assert capsys.readouterr().out == f"No sweep was submitted to {head.address}.\n"


def test_a_cluster_that_is_too_old_is_refused(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    head.answers["GET /api/version"] = Answer({"ray_version": "2.9.3"})
    assert main(["submit", "tiny.yaml"]) == 2
    assert "the cluster has Ray 2.9.3; carft-sweep needs 2.44 or newer" in capsys.readouterr().err


def test_the_manifest_takes_the_clusters_version(
    head: FakeHead, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--emit", "rayjob", "--image", "i", "--address", head.address)
    assert main(["submit", "kl_weight", *words]) == 0
    assert "rayVersion: 2.99.0" in capsys.readouterr().out
