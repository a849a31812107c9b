"""Secrets by file: what stands in for a variable, and what is refused without showing it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.secrets import NAMES, read_secret_files
from tests.sweeps.conftest import Carft

SECRET = "s3cr3t-of-a-file"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "secret"
    made.write_text(f"{SECRET}\n")
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_secret_may_be_given_by_file(name: str, file: Path) -> None:
    environ = {f"{name}_FILE": str(file), "OTHER_FILE": "stays"}
    read_secret_files(environ)
    assert environ == {name: SECRET, "OTHER_FILE": "stays"}


def test_every_secret_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ray.md").read_text()
    table = page.partition("| variable | of |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z_]+)`", table)) == set(NAMES)


def test_only_the_newline_at_the_end_goes_and_empty_variables_are_none(file: Path) -> None:
    readings = {" two words \n": " two words ", "a\r\n": "a", "a": "a", "ä\n": "ä"}
    for written, read in readings.items():
        file.write_bytes(written.encode())
        environ = {"PGPASSWORD_FILE": str(file), "PGPASSWORD": "", "HF_TOKEN_FILE": ""}
        read_secret_files(environ)
        assert environ == {"HF_TOKEN_FILE": "", "PGPASSWORD": read}


def test_a_wrong_file_and_both_ways_at_once_are_named_and_not_quoted(file: Path) -> None:
    environ = {"PGPASSWORD": "the other", "PGPASSWORD_FILE": str(file)}
    with pytest.raises(RequestError, match="PGPASSWORD_FILE: PGPASSWORD is set too") as refused:
        read_secret_files(environ)
    assert not any(secret in str(refused.value) for secret in (SECRET, "the other"))
    for content, problem in {
        b"": "is empty",
        b"\n": "is empty",
        f"{SECRET}\nand more\n".encode(): "must hold one line of text",
        f"{SECRET}\0".encode(): "must hold one line of text",
        SECRET.encode() + b"\xff": "is no text in UTF-8",
    }.items():
        file.write_bytes(content)
        with pytest.raises(RequestError, match=f"PGPASSWORD_FILE: {file} {problem}") as refused:
            read_secret_files({"PGPASSWORD_FILE": str(file)})
        assert SECRET not in str(refused.value)


def test_a_command_reads_them_and_ends_with_2_where_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    name = "MLFLOW_TRACKING_TOKEN_FILE"
    monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    message = f"{tmp_path}/nowhere cannot be read: No such file or directory"
    assert carft("schema", code=2) == ("", f"carft-sweep: {name}: {message}\n")
