"""What a job is told: variables that are no secrets, secrets by reference, packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.submit.package import requirements, runtime_env, variables


def test_what_is_no_secret_is_sent_and_what_is_one_is_named() -> None:
    made = variables(
        {
            "MLFLOW_TRACKING_URI": "https://server",
            "MLFLOW_TRACKING_PASSWORD": "no",
            "MLFLOW_EXPERIMENT_NAME": "",
            "CARFT_OPTUNA_STORAGE": "postgresql://me:no@host/db",
            "CARFT_DATA": "/data",
            "CARFT_HOME": "/home/here",
            "PGPASSWORD_FILE": "/run/no",
            "SOME_KEY": "no",
            "RAY_AUTH_TOKEN": "no",
            "PATH": "/bin",
        },
        ["A=1", "CARFT_DATA=/there"],
        ["HF_TOKEN=/run/secrets/hf"],
    )
    assert made.sent == {
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "MLFLOW_TRACKING_URI": "https://server",
        "CARFT_DATA": "/there",
        "A": "1",
        "HF_TOKEN_FILE": "/run/secrets/hf",
    }
    assert made.kept == ("CARFT_OPTUNA_STORAGE", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
    assert made.notes == ()


def test_a_secrets_value_goes_under_no_other_name() -> None:
    environ = {"SLACK_TOKEN": "hidden-x-y", "MLFLOW_NOTE": "uses hidden-x-y"}
    assert "MLFLOW_NOTE" not in variables(environ).sent
    with pytest.raises(RequestError, match="--env A: this is a secret"):
        variables(environ, ["A=hidden-x-y"])


def test_a_secret_that_the_cluster_has_is_not_missed() -> None:
    made = variables({"PGPASSWORD": "no"}, secrets=["PGPASSWORD=/run/pg"])
    assert made.kept == ()


@pytest.mark.parametrize(
    ("uri", "host"), [("http://localhost:5000", "localhost"), ("http://[::1]:5000", "::1")]
)
def test_an_address_of_this_machine_is_doubted(uri: str, host: str) -> None:
    (note,) = variables({"MLFLOW_TRACKING_URI": uri}).notes
    assert note.startswith(f"MLFLOW_TRACKING_URI names {host}")


def test_other_doubts() -> None:
    (note,) = variables({"CARFT_DATA": "data", "MLFLOW_TRACKING_URI": "http://[x"}).notes
    assert note.startswith("CARFT_DATA is data, relative")


@pytest.mark.parametrize(
    ("env", "secrets", "said"),
    [
        (["MY_TOKEN=hidden-x"], [], "--env MY_TOKEN: this is a secret"),
        (["A=http://me:hidden-x@host"], [], "--env A: this is a secret"),
        (["hidden-x"], [], r"--env \.\.\.: must be NAME=VALUE"),
        (["A"], [], "--env A: must be NAME=VALUE"),
        (["PYTHONPATH=/x"], [], "--env PYTHONPATH: the driver sets it"),
        ([], ["HF_TOKEM=/x"], "unknown secret 'HF_TOKEM'; did you mean 'HF_TOKEN'"),
        ([], ["HF_TOKEN=x"], "must be an absolute path on the cluster"),
    ],
)
def test_what_is_refused_shows_no_secret(env: list[str], secrets: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        variables({}, env, secrets)
    assert "hidden-x" not in str(refused.value)


def test_packages_come_from_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# mine\n\nopen_clip_torch>=3 # newest\nray-utils\n")
    assert requirements(["wandb", str(file)]) == ["wandb", "open_clip_torch>=3", "ray-utils"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("nowhere.txt", "cannot be read"),
        ("-e .", "a path of this machine"),
        ("./mine", "a path of this machine"),
        ("/mine.whl", "a path of this machine"),
        ("ray[tune]==2.44", "has the Ray of its cluster"),
        ("Ray", "has the Ray of its cluster"),
        ("git+https://me:hidden-x@host/mine.git", "an address with a password"),
    ],
)
def test_packages_that_cannot_serve_are_refused(item: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        requirements([item])
    assert "hidden-x" not in str(refused.value)


def test_the_runtime_environment_has_what_there_is() -> None:
    given = variables({})
    assert runtime_env(given, None, []) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}
    whole = runtime_env(given, "gcs://x.zip", ["wandb"])
    assert whole["working_dir"] == "gcs://x.zip"
    assert whole["pip"] == ["wandb"]
