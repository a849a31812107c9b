"""The shell scripts: they parse, make secrets that nobody else reads, and take them from files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.composed import DOCKER, ROOT, composed
from tests.services.processes import ended

SCRIPTS = sorted(DOCKER.rglob("*.sh"))
ENTRYPOINT = DOCKER / "server" / "entrypoint.sh"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_one_that_is_run_stops_at_a_mistake(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    text = script.read_text()
    if text.startswith("#!"):  # others are read by those
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        assert script.stat().st_mode & 0o111 == 0o111


def test_shellcheck_finds_nothing() -> None:
    docs = ROOT / "docs"
    elsewhere = [ROOT / ".ci/run", *docs.rglob("*.sh"), *docs.rglob("*.sbatch")]
    run = [script for script in (*SCRIPTS, *elsewhere) if script.read_text().startswith("#!")]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = ended(shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *run)
    assert done.returncode == 0, done.stdout


def make_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    return ended(DOCKER / "make-secrets.sh", folder)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "secrets"
    assert make_secrets(folder).returncode == 0
    return folder


def test_every_secret_of_compose_is_made_long_and_new_in_a_folder_of_the_users_own(
    secrets: Path, tmp_path: Path
) -> None:
    asked = {Path(made["file"]).name for made in composed()["secrets"].values()}
    assert {file.name for file in secrets.iterdir()} == asked
    assert secrets.stat().st_mode & 0o777 == 0o700
    # Containers can read the files.
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o444}
    words = [file.read_text().strip() for file in secrets.iterdir() if "s3" not in file.name]
    assert len({*words}) == len(words) == 7
    assert all(len(word) == 40 and word.isalnum() for word in words)
    make_secrets(tmp_path / "others")
    other_words = {file.read_text().strip() for file in (tmp_path / "others").iterdir()}
    assert not other_words & {*words}


def test_the_stores_keys_are_the_same_in_its_list_and_in_boto3s_files(secrets: Path) -> None:
    listed = json.loads((secrets / "s3_identities.json").read_text())["identities"]
    assert [identity["name"] for identity in listed] == ["admin", "mlflow"]
    for identity in listed:
        (keys,) = identity["credentials"]
        shared = (secrets / f"s3_{identity['name']}").read_text()
        first = f"[default]\naws_access_key_id = {keys['accessKey']}\n"
        assert shared == f"{first}aws_secret_access_key = {keys['secretKey']}\n"
    assert all(action.endswith(":mlflow") for action in listed[1]["actions"])


def test_secrets_that_are_there_are_kept_and_half_of_the_stores_keys_are_not_guessed_at(
    secrets: Path, tmp_path: Path
) -> None:
    def texts() -> dict[str, str]:
        return {file.name: file.read_text() for file in folder.iterdir()}

    folder = tmp_path / "secrets"
    shutil.copytree(secrets, folder)
    (folder / "ray_token").unlink()
    before = texts()
    again = make_secrets(folder)
    assert again.returncode == 0
    assert "optuna_password is there already" in again.stderr
    after = texts()
    assert after.pop("ray_token")
    assert after == before
    (folder / "s3_mlflow").unlink()
    done = make_secrets(folder)
    assert done.returncode == 2
    assert "has some of s3_identities.json, s3_admin, s3_mlflow" in done.stderr


def entry(**variables: str) -> subprocess.CompletedProcess[str]:
    """What the server's entry point hands on: the variables that are asked for."""
    script = "echo ${PGPASSWORD-none}, ${PGPASSWORD_FILE-none}"
    return ended(ENTRYPOINT, "bash", "-c", script, environ={"PATH": "/usr/bin:/bin", **variables})


def test_a_secret_comes_from_its_file_and_one_that_is_missing_empty_or_given_twice_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "password").write_text("two words $HOME\n")
    (tmp_path / "empty").touch()
    taken = entry(PGPASSWORD_FILE=str(tmp_path / "password"))
    for done, words in (
        (taken, "two words $HOME"),
        (entry(), "none"),
        (entry(PGPASSWORD="given"), "given"),
    ):
        assert (done.returncode, done.stdout) == (0, f"{words}, none\n")
    for file in ("empty", "nowhere"):
        done = entry(PGPASSWORD_FILE=str(tmp_path / file))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"PGPASSWORD_FILE: {tmp_path / file} cannot be read, or is empty\n"
    done = entry(PGPASSWORD="given", PGPASSWORD_FILE=str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "both set" in done.stderr
