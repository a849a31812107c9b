"""`submit`: the job's command, and the command line where a feigned cluster is enough."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.sweeps.submit.client import JobClient
from carft_sweep.sweeps.submit.submission import Submission
from tests.services.answering import Answer
from tests.sweeps.conftest import Carft
from tests.sweeps.submit.conftest import FakeHead, Git, fake_head, names_in

VERSION = {"GET /api/version": Answer({"ray_version": "2.99.0"})}
RUN = "exec python -m carft_sweep run"
ENDED = {
    **{"submission_id": "a", "type": "SUBMISSION", "entrypoint": ""},
    **{"status": "FAILED", "driver_exit_code": 2, "message": "why"},
}


class Taking(dict[str, Answer]):
    """A cluster that takes every package and job; each job has ended, and printed a line."""

    def get(self, call: str, default: Any = None) -> Any:
        if call.startswith("GET /api/packages"):
            return Answer("Package x does not exist", 404)
        if call.startswith("GET /api/jobs/carft-"):
            return Answer(ENDED)
        if call == "POST /api/jobs/":
            return Answer({"job_id": "carft-tiny-1", "submission_id": "carft-tiny-1"})
        return Answer("") if call.startswith("PUT") else super().get(call, default)


@pytest.fixture
def head(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    """One that takes everything, found by Ray's variable from within the project."""
    del project
    with fake_head(answers=Taking(VERSION)) as made:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", made.address)
        yield made


def request(head: FakeHead) -> dict[str, Any]:
    (body,) = (body for call, _, body in head.asked if call == "POST /api/jobs/")
    document: dict[str, Any] = json.loads(body)
    return document


def packed(head: FakeHead) -> set[str]:
    (body,) = (body for call, _, body in head.asked if call.startswith("PUT"))
    return names_in(body)


def entrypoint(
    file: Path | str, options: Sequence[str] = (), *, imports: Sequence[str] = ()
) -> str:
    spec = load_spec("kl_weight")
    spec = spec.model_copy(update={"imports": tuple(imports)})
    return Submission(spec, file, tuple(imports), "/shared/home", tuple(options)).entrypoint()


def test_the_job_begins_in_the_current_folder_of_the_root_and_names_file_or_recipe(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = str(project / "mine.py")
    command = entrypoint(project / "tiny.yaml")
    assert command == f"{RUN} tiny.yaml --address auto --home /shared/home"
    assert entrypoint("kl_weight").startswith(f"{RUN} kl_weight ")
    assert entrypoint("kl_weight", imports=[mine]).endswith("--import mine.py")
    below = project / "my sweeps"
    below.mkdir()
    monkeypatch.chdir(below)
    options, imports = ["--set", "description=a b"], ["installed", mine]
    step, _, rest = entrypoint(project / "tiny.yaml", options, imports=imports).rpartition(
        " && exec "
    )
    assert step == "mkdir -p 'my sweeps' && cd 'my sweeps'"
    assert shlex.split(rest) == [
        *("python", "-m", "carft_sweep", "run", "../tiny.yaml", "--address", "auto"),
        *("--home", "/shared/home", "--import", "installed", "--import", "../mine.py"),
        *("--set", "description=a b"),
    ]


def test_a_file_outside_and_a_password_are_refused(project: Path, tmp_path: Path) -> None:
    outside = str(tmp_path / "mine.py")
    with pytest.raises(RequestError, match=f"{outside} is needed, but lies outside of {project}"):
        entrypoint(project / "tiny.yaml", imports=[outside])
    with pytest.raises(RequestError, match="an option has a password") as refused:
        entrypoint("kl_weight", ["--set", "description=http://me:hidden-x@host"])
    assert "hidden-x" not in str(refused.value)


async def one_line(*_: object) -> AsyncIterator[str]:
    """A log without an end of its line; Ray sends it over a websocket, which the head has not."""
    yield "a line"


def test_a_repository_is_sent_and_its_job_followed_to_its_exit_code(
    git: Git, project: Path, head: FakeHead, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    monkeypatch.setattr(JobClient, "tail_job_logs", one_line)
    monkeypatch.setattr(JobClient, "get_job_logs", lambda *_: "a line")
    (project / "mine.py").write_text("X = 2\n")
    (project / "hf_token").write_text("planted-password")
    printed = carft("submit", "tiny.yaml", "--", "--quiet", code=2)
    asked = request(head)
    assert asked["entrypoint"].endswith("--home /shared/home --quiet")
    commit = f"{git('rev-parse', 'HEAD')}-dirty"
    variables = asked["runtime_env"]["env_vars"]
    assert variables["CARFT_SOURCE_COMMIT"] == commit
    again = f"carft-sweep submit tiny.yaml --address {head.address} --home /shared/home"
    assert variables["CARFT_SUBMITTED"] == again
    assert asked["metadata"]["carft_sweep"] == "tiny"
    assert asked["metadata"]["carft_commit"] == commit
    assert asked["submission_id"].startswith("carft-tiny-")
    assert packed(head) == {".gitignore", "mine.py", "tiny.yaml"}
    assert printed.out == "a line\n"
    assert f"{project} is sent, without what git ignores" in printed.err
    assert "The cluster has Ray 2.99.0, this machine" in printed.err
    assert "Not sent, since secret: MLFLOW_TRACKING_PASSWORD." in printed.err
    assert "is failed. why" in printed.err
    assert "planted" not in json.dumps(asked) + printed.out + printed.err


@pytest.mark.usefixtures("registries")
def test_without_a_repository_the_current_folder_is_sent(
    project: Path, head: FakeHead, carft: Carft
) -> None:
    (project / "birds.family.yaml").write_text("name: birds\nroot: /d\ntrain: a\ntest: b\n")
    (project / "words.txt").write_text("a photo of a {}.\n")
    (project / "package").mkdir()
    for name in ("__init__.py", "part.py", "data.csv"):
        (project / "package" / name).write_text("")
    (project / "tiny.yaml").write_text(
        "name: tiny\nimport: [./package]\nparameters: {prompts.contexts: {values: [words.txt]}}\n"
        "trial: {algorithm: fine_tune, data: {family: birds.family.yaml}}\n"
    )
    printed = carft("submit", "tiny.yaml", "--no-wait", "--import", "mine.py")
    assert printed.out == "carft-tiny-1\n"
    assert packed(head) == {
        *(".gitignore", "tiny.yaml", "birds.family.yaml", "words.txt", "mine.py"),
        *("package/__init__.py", "package/part.py", "package/data.csv"),
    }
    assert "--import mine.py" in request(head)["entrypoint"]


def test_a_cluster_that_stays_away_ends_with_4_and_a_job_that_nobody_took_is_none(
    head: FakeHead, carft: Carft
) -> None:
    class Gone(Taking):
        def get(self, call: str, default: Any = None) -> Any:
            gone = call.startswith("GET /api/jobs/")
            return Answer("", 503) if gone else super().get(call, default)

    head.answers = Gone(VERSION)
    printed = carft("submit", "kl_weight", code=4).err
    assert "The job may continue. To follow it: ray job logs" in printed
    head.answers, head.otherwise = dict(VERSION), Answer("", 502)
    assert "answers 502: Bad Gateway" in carft("submit", "kl_weight", code=4).err


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carft_sweep.sweeps.submit.client.JobClient.follow", interrupted)
    printed = carft("submit", "kl_weight", code=3).err
    assert "carft-tiny-1 continues." in printed
    assert f"ray job logs --address {head.address} --follow carft-tiny-1" in printed
    assert f"ray job stop --address {head.address} carft-tiny-1" in printed
    assert not [call for call, *_ in head.asked if "stop" in call]


def test_what_is_wrong_is_told_before_anything_is_sent(
    head: FakeHead, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in {
        "": "the following arguments are required: FILE",
        "tiny.yaml --home here": "the home here must be an absolute path",
        "tiny.yaml --set engine=local": "engine: local would leave the cluster idle",
        "tiny.yaml -- --in-process": "no --in-process and no --address",
        "tiny.yaml -- --home /x": "--home goes before `--`",
        "tiny.yaml -- --nonsense": "unknown option '--nonsense'",
        "tiny.yam": "did you mean 'tiny.yaml'",
    }.items():
        assert message in carft("submit", *words.split(), code=2).err
    # An older Ray ignores RAY_AUTH_MODE: everything would work, and nothing be protected.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    head.answers["GET /api/version"] = Answer({"ray_version": "2.58.0"})
    message = "the cluster has Ray 2.58.0; carft-sweep needs 2.59 or newer"
    assert message in carft("submit", "tiny.yaml", code=2).err
    assert not [call for call, *_ in head.asked if not call.startswith("GET /api/version")]


def test_a_cluster_that_asks_for_no_token_is_named(head: FakeHead, carft: Carft) -> None:
    assert "asks for no token" not in carft("submit", "kl_weight", "--no-wait").err
    head.answers["GET /api/jobs/"] = Answer([])
    message = f"{head.address} takes jobs from whoever reaches it: the cluster asks for no token"
    assert message in carft("submit", "kl_weight", "--no-wait").err
    asked = [headers for call, headers, _ in head.asked if call == "GET /api/jobs/"]
    assert not [name for headers in asked for name in headers if name.lower() == "authorization"]
