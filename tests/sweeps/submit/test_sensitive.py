"""What is known for a secret, and what is not."""

from __future__ import annotations

import pytest

from sweeps.secrets import NAMES
from sweeps.submit.package import (
    BY_VALUE,
    has_password,
    is_secret,
    secret_values,
    why_a_file_stays,
    why_content_stays,
)


@pytest.mark.parametrize("name", [name for name in NAMES if name != BY_VALUE])
def test_every_named_secret_is_one_and_so_is_its_file(name: str) -> None:
    assert is_secret(name, "x")
    assert is_secret(f"{name}_FILE", "/run/secrets/x")


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("MY_API_KEY", "x", True),
        ("db_password", "x", True),
        ("MLFLOW_TRACKING_URI", "http://server:5000", False),
        ("MLFLOW_TRACKING_URI", "http://me:pw@server:5000", True),
        ("MLFLOW_TRACKING_URI", "https://token@server", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me@host/optuna", False),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:pw@host/optuna", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://host/optuna?password=pw", True),
        # As SQLAlchemy writes a blank, and as people write a slash.
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:open sesame%2F@host/optuna", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:a/b@host/optuna", True),
        ("MLFLOW_EXPERIMENT_NAME", "a: b@c", False),
    ],
)
def test_a_variable_is_a_secret_by_name_or_by_a_password_in_it(
    name: str, value: str, secret: bool
) -> None:
    assert is_secret(name, value) is secret


def test_an_address_of_git_without_a_password_is_none() -> None:
    assert not has_password("git+ssh://git@github.com/me/mine.git")
    assert has_password("git+https://ghp_x@github.com/me/mine.git")


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "a/.env.local", "prod.env", "x.pem", "ssh/id_rsa", "id_ed25519", ".netrc"),
        *("credentials", "a/credentials.json", "gcp-credentials.yaml", "secrets.toml", ".pypirc"),
        *("docker/secrets/password", ".aws/config", ".kube/x", ".git/config", "b/.git"),
        *("service-account-7.json", "kubeconfig.yaml", ".pgpass", "KEY.PEM"),
    ],
)
def test_files_for_secrets_stay(name: str) -> None:
    assert why_a_file_stays(name)


@pytest.mark.parametrize(
    "name",
    [
        *("sweeps/secrets.py", "docs/secrets.md", "env.yaml", ".env.example", "id_rsa.pub"),
        *("keys.csv", "environment.yml", "tiny.yaml", ".gitignore", "src/tokens.txt"),
    ],
)
def test_other_files_go(name: str) -> None:
    assert why_a_file_stays(name) is None


def test_what_a_file_holds_can_keep_it_here() -> None:
    values = secret_values(
        {
            "MLFLOW_TRACKING_PASSWORD": "long-enough",
            "CARFT_OPTUNA_STORAGE": "postgresql://me:pass%20word@host/db",
            "MLFLOW_TRACKING_USERNAME": "researcher",
            "PGPASSWORD": "short",
            "AWS_CONFIG_KEY": "/a/path/of/a/file",
            "PGPASSWORD_FILE": "no such file",
            "EDITOR": "long enough too",
        }
    )
    assert set(values) == {"long-enough", "postgresql://me:pass%20word@host/db", "pass word"}
    assert why_content_stays(b"x: long-enough", values) == "holds a secret of this environment"
    assert why_content_stays(b"x: pass word", values)
    assert why_content_stays(b"researcher short", values) is None
    key = b"-----BEGIN RSA PRIVATE KEY-----\n" + b"A" * 64 + b"\n"
    assert why_content_stays(key, ()) == "holds a private key"
    assert secret_values({"X_TOKEN_URL": "http://[broken:x@y"})
