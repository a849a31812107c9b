"""What is sent: the files and variables of a sweep, and nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.submit.submission import excluded, is_secret, job_variables
from tests.sweeps.submit.conftest import names_in


def packed(root: Path, *exclude: str) -> set[str]:
    """The files that Ray packs of a folder."""
    archive = root.parent / "files.zip"
    archive.unlink(missing_ok=True)
    create_package(
        str(root), archive, include_gitignore=True, excludes=excluded(root.resolve(), exclude)
    )
    return names_in(archive.read_bytes())


SECRETS = (
    *(".env", "a/.env.local", "prod.env", "x.pem", "ssh/id_rsa", "id_ed25519", ".netrc"),
    *("credentials", "a/credentials.json", "gcp-credentials.yaml", "secrets.toml", ".pypirc"),
    *("docker/secrets/password", ".aws/config", ".kube/x", "service-account-7.json", ".pgpass"),
    *("kubeconfig.yaml", "token", "hf_token", "password.txt", "passwords.txt", "kaggle.json"),
    *("client_secret_7.apps.json", "gcp-key.json", ".s3cfg", ".boto", ".my.cnf", ".vault-token"),
    *("terraform.tfstate", "prod.tfvars", "me.ppk", "me.asc", "rclone.conf", "pip.conf"),
    *(".config/gh/hosts.yml", "cookies.txt", "mlflow-password", "optuna-url", "ray-token"),
    *(".databrickscfg", ".bash_history"),
    # Also what is harmless in other folders.
    *("secrets/prod.py", ".ssh/config.md"),
)
OTHERS = (
    *("sweeps/secrets.py", "docs/secrets.md", "env.yaml", ".env.example", "id_rsa.pub", "keys.csv"),
    *("environment.yml", "tiny.yaml", ".gitignore", "src/tokens.txt", "tokenizer.json"),
    *("hosts.yml", "added_tokens.json", "passwords.py", "docker/Dockerfile"),
)


def test_files_for_secrets_stay_and_others_go(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for name in (*SECRETS, *OTHERS, ".git/config", ".carft/runs/a", "large/a.bin", "mine.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / ".gitignore").write_text("mine*\n")
    assert packed(root, "large/") == {*OTHERS}


def test_links_are_followed_inside_and_not_out_and_a_home_under_another_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "project", tmp_path / "photographs"
    inside = [root / name for name in ("package/own.py", "deep/a.txt", "results/runs/a")]
    for file in (*inside, outside / "large.jpg"):
        file.parent.mkdir(parents=True)
        file.write_text("")
    (root / "linked").symlink_to("package")
    (root / "data").symlink_to(outside)
    (root / "deep" / "one.jpg").symlink_to(outside / "large.jpg")
    monkeypatch.setenv("CARFT_HOME", str(root / "results"))
    assert packed(root) == {"package/own.py", "linked/own.py", "deep/a.txt"}


def test_what_is_no_secret_is_sent_and_what_is_one_is_named_and_goes_under_no_other_name() -> None:
    secrets = ("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "HF_TOKEN", "SOME_KEY", "RAY_AUTH_TOKEN")
    environ = {
        **dict.fromkeys(secrets, "hidden-x-y"),
        "MLFLOW_TRACKING_URI": "https://server",
        "MLFLOW_EXPERIMENT_NAME": "",
        "MLFLOW_HTTP_HEADERS": "Authorization: Bearer no",
        **{"CARFT_DATA": "/data", "CARFT_HOME": "/home/here", "PATH": "/bin"},
    }
    sent, withheld = job_variables(
        environ, ["A=1", "CARFT_DATA=/there", "HF_TOKEN_FILE=/run/secrets/hf"]
    )
    assert sent == {
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "MLFLOW_TRACKING_URI": "https://server",
        **{"CARFT_DATA": "/there", "A": "1", "HF_TOKEN_FILE": "/run/secrets/hf"},
    }
    assert withheld == ["MLFLOW_HTTP_HEADERS", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"]
    environ = {"SLACK_TOKEN": "hidden-x-y", "MLFLOW_NOTE": "uses hidden-x-y"}
    assert "MLFLOW_NOTE" not in job_variables(environ)[0]
    with pytest.raises(RequestError, match="--env A: this is a secret"):
        job_variables(environ, ["A=hidden-x-y"])


def test_what_is_refused_shows_no_secret() -> None:
    for assignment, message in {
        "MY_TOKEN=hidden-x": "--env MY_TOKEN: this is a secret",
        "A=http://me:hidden-x@host": "--env A: this is a secret",
        "A=https://h/x?sig=hidden-x": "--env A: this is a secret",
        "hidden-x": r"--env \.\.\.: must be NAME=VALUE",
        "A": "--env A: must be NAME=VALUE",
        "HF_TOKEN_FILE=x": "--env HF_TOKEN_FILE: this is a secret",
    }.items():
        with pytest.raises(RequestError, match=message) as refused:
            job_variables({}, [assignment])
        assert "hidden-x" not in str(refused.value)


def test_a_secret_is_known_by_name_or_password() -> None:
    for name, value in (
        *((name, "x") for name in ("MY_API_KEY", "db_password", "CARFT_PASS", "CARFT_DSN")),
        ("MLFLOW_TRACKING_URI", "http://me:pw@server:5000"),
        ("MLFLOW_TRACKING_URI", "https://token@server"),
        ("MLFLOW_TRACKING_URI", "postgresql://host/mlflow?password=pw"),
    ):
        assert is_secret(name, value), (name, value)
    for name, value in (
        ("MLFLOW_TRACKING_URI", "http://server:5000"),
        ("MLFLOW_EXPERIMENT_NAME", "a: b@c"),
        ("MLFLOW_AUTH_CONFIG_PATH", "/etc/mlflow.ini"),
        ("MLFLOW_TRACKING_AUTH", "kubernetes"),  # the name of a plugin
    ):
        assert not is_secret(name, value), (name, value)
