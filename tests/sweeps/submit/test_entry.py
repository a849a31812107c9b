"""The job's command: the same sweep from the same folder, for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.cli.parser import parse
from sweeps.submit.submission import entrypoint_command, forwarded_options

HOME = "/shared/home"
RUN = "exec python -m sweeps run"


def test_a_file_at_the_root_is_run_there(project: Path) -> None:
    command = entrypoint_command(project / "tiny.yaml", HOME, [], root=project)
    assert command == f"{RUN} tiny.yaml --address auto --home {HOME}"


def test_the_job_begins_in_the_current_folder_of_the_root(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = project / "my sweeps"
    below.mkdir()
    monkeypatch.chdir(below)
    command = entrypoint_command(
        project / "tiny.yaml",
        HOME,
        ["--set", "description=a b"],
        root=project,
        imports=["installed", str(project / "mine.py")],
        python="/venv/bin/python",
    )
    step, _, rest = command.rpartition(" && exec ")
    assert step == "mkdir -p 'my sweeps' && cd 'my sweeps'"
    assert shlex.split(rest) == [
        *("/venv/bin/python", "-m", "sweeps", "run", "../tiny.yaml", "--address", "auto"),
        *("--home", HOME, "--import", "installed", "--import", "../mine.py"),
        *("--set", "description=a b"),
    ]


def test_from_elsewhere_it_begins_at_the_root(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = entrypoint_command(Path("project/tiny.yaml"), HOME, [], root=project)
    assert command.startswith(f"{RUN} tiny.yaml ")


def test_a_recipe_needs_no_file(project: Path) -> None:
    assert entrypoint_command("kl_weight", HOME, []).startswith(f"{RUN} kl_weight ")
    with pytest.raises(RequestError, match=r"mine\.py lies outside of what is sent \(nothing\)"):
        entrypoint_command("kl_weight", HOME, [], imports=[str(project / "mine.py")])


def test_a_file_outside_and_a_password_are_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"lies outside of what is sent \\({project}\\)"):
        entrypoint_command(tmp_path / "other.yaml", HOME, [], root=project)
    with pytest.raises(RequestError, match="an address with a password") as refused:
        entrypoint_command("kl_weight", HOME, ["--set", "description=http://me:hidden-x@host"])
    assert "hidden-x" not in str(refused.value)


def test_the_options_of_run_are_handed_on(project: Path) -> None:
    del project
    given = parse(
        [
            *("submit", "tiny.yaml", "--set", "seeds=2", "--profile", "smoke", "--fresh"),
            *("--data-root", "/data", "--parallel", "4", "--timeout", "2h", "--quiet"),
            *("--", "--webhook", "no"),
        ]
    )
    assert forwarded_options(given) == [
        *("--set", "seeds=2", "--profile", "smoke", "--data-root", "/data", "--parallel", "4"),
        *("--timeout", "2h", "--fresh", "--quiet", "--webhook", "no"),
    ]
