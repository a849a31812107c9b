"""A user's own modules: found from any folder, imported once, each mistake told in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.spec.schema import sweep_schema
from carft_sweep.sweeps.spec.user_code import load, resolve, vet_of
from tests.owners import give_away

METHOD = '''
from typing import ClassVar
from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.fine_tune import FineTune

@ALGORITHMS.register
class Mine(FineTune):
    """Mine."""
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "Mine"
    pull: float = 0.5
'''


@pytest.fixture(autouse=True)
def forgetting(monkeypatch: pytest.MonkeyPatch, registries: None) -> Iterator[None]:
    """What a test imports is forgotten after it."""
    del registries
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "beside")):
            del sys.modules[name]


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(item: str, folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        load(resolve([item], folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_of_what_a_home_names_only_ones_own_files_outside_of_it_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    vet, trusting = vet_of(home), vet_of(Home(home.path, is_trusted=True))
    alone = write(tmp_path / "mine" / "my_alone.py")
    package = write(tmp_path / "mine" / "my_package" / "__init__.py")
    part = write(tmp_path / "mine" / "my_package" / "part.py")
    inside = write(home.path / "my_inside.py")
    linked = tmp_path / "mine" / "my_link.py"
    linked.symlink_to(inside)
    for item in (alone, package, part):
        vet(str(item))
    vet("sys")
    vet(str(home.path / "a.family.yaml"))  # is read, and runs nothing
    for item in (inside, linked):
        with pytest.raises(
            RequestError, match=r"it lies in the home\. If you trust it: --trust-ho"
        ):
            vet(str(item))
        trusting(str(item))
        vet_of(home, besides=[str(item)])(str(item))
    monkeypatch.setattr("carft_sweep.tracking.ownership._is_private", lambda *_: False)
    for path, reached in (
        (alone, [alone]),
        (alone.parent, [alone, package, part]),  # what lies beside it can be imported
        (package.parent, [package, part]),
    ):
        before = path.stat().st_mode
        path.chmod(before | 0o020)
        for item in (alone, package, part):
            if item not in reached:
                vet(str(item))
                continue
            with pytest.raises(RequestError, match=rf"{path} can be written by group .*chmod g-w"):
                vet(str(item))
        path.chmod(before)
    monkeypatch.syspath_prepend(alone.parent)
    vet("my_alone")
    give_away(alone, monkeypatch)
    for name in (str(alone), "my_alone"):
        with pytest.raises(RequestError, match=f"{alone} belongs to user"):
            vet(name)


def test_what_a_file_registers_is_known_everywhere(tmp_path: Path) -> None:
    write(tmp_path / "my_methods.py", METHOD)
    load(resolve(["./my_methods.py"], tmp_path))
    assert ALGORITHMS["mine"].__module__ == "my_methods"
    assert (
        "mine"
        in sweep_schema()["properties"]["trial"]["properties"]["algorithm"]["anyOf"][0]["enum"]
    )
    assert "algorithm.pull" in sweep_schema()["properties"]["parameters"]["properties"]


def test_a_file_is_imported_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    text = f"with open({str(counter)!r}, 'a') as file:\n    file.write('x')\n"
    write(tmp_path / "my_methods.py", text)
    for _ in range(3):
        load(resolve(["my_methods.py", "./my_methods.py", "my_methods"], tmp_path))
    assert counter.read_text() == "x"


def test_paths_are_taken_from_the_sweep_files_folder_and_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "lab" / "my_methods.py")
    package = write(tmp_path / "lab" / "my_lab" / "__init__.py")
    write(tmp_path / "elsewhere" / "x")
    monkeypatch.chdir(tmp_path / "elsewhere")
    lab = tmp_path / "lab"
    assert resolve(["my_methods.py", "./my_lab", "../lab/my_methods.py"], lab) == (
        str(file),
        str(package),
        str(file),
    )
    assert resolve([str(file)], tmp_path) == (str(file),)
    monkeypatch.setenv("HOME", str(lab))
    assert resolve(["~/my_methods.py"], tmp_path / "elsewhere") == (str(file),)


def test_a_name_is_an_installed_module_or_one_beside_the_sweep_file_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write(tmp_path / "lab" / "my_methods.py")
    write(tmp_path / "here" / "my_methods.py")
    here = write(tmp_path / "here" / "my_lab" / "methods.py")
    write(tmp_path / "lab" / "json.py")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")  # as `python -m` does
    found = resolve(["json", "my_methods", "my_lab.methods"], tmp_path / "lab")
    assert found == ("json", str(beside), str(here))


def test_a_file_of_a_package_is_imported_as_a_part_of_it(tmp_path: Path) -> None:
    write(tmp_path / "my_lab" / "__init__.py")
    write(tmp_path / "my_lab" / "deep" / "__init__.py")
    write(tmp_path / "my_lab" / "deep" / "methods.py", f"from ..scale import SCALE\n{METHOD}")
    write(tmp_path / "my_lab" / "scale.py", "SCALE = 1\n")
    load(resolve(["./my_lab/deep/methods.py"], tmp_path))
    assert ALGORITHMS["mine"].__module__ == "my_lab.deep.methods"


def test_files_beside_it_hide_nothing_that_is_installed(tmp_path: Path) -> None:
    write(tmp_path / "my_methods.py", "import json, beside_it\nassert json.dumps\n")
    write(tmp_path / "beside_it.py")
    write(tmp_path / "json.py", "raise AssertionError\n")
    write(tmp_path / "torch.py", "raise AssertionError\n")
    load(resolve(["my_methods.py"], tmp_path))
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nfoo\n", "NameError: name 'foo' is not defined (at {file}:2)"),
        ("def f(:\n    pass\n", "SyntaxError: invalid syntax (at {file}:1)"),
        ("import my_nowhere\n", "ModuleNotFoundError: No module named 'my_nowhere' (at {file}:1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (at {file}:2)"),
        ("raise ValueError\n", "ValueError (at {file}:1)"),
        ("from beside_it import f\n\n\nf()\n", "KeyError: 'x' (at {folder}/beside_it.py:2)"),
        (
            METHOD.replace('"mine"', '"car_ft"'),
            "algorithm Mine cannot be registered: the name 'car_ft' is taken by "
            "carft_sweep.carft_core.algorithms.car_ft.CarFt; give it another (at {file}:6)",
        ),
    ],
)
def test_a_broken_module_has_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path / "my_methods.py", text)
    write(tmp_path / "beside_it.py", "def f():\n    {}['x']\n")
    message = refused("my_methods.py", tmp_path)
    assert message == f"cannot import {file}: {told.format(file=file, folder=tmp_path)}"


def test_a_module_that_was_mended_is_imported_at_the_next_try(tmp_path: Path) -> None:
    file = write(tmp_path / "my_methods.py", f"{METHOD}\nfoo\n")
    assert "NameError" in refused("my_methods.py", tmp_path)
    file.write_text(METHOD)
    load(resolve(["my_methods.py"], tmp_path))
    assert sys.modules["my_methods"].__file__ == str(file)


def test_what_is_not_there_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "my_methods.py")
    write(tmp_path / "my_lab" / "__init__.py")
    assert refused("./my_method.py", tmp_path) == (
        f"import: {tmp_path}/my_method.py does not exist; did you mean 'my_methods.py'?"
    )
    assert "did you mean 'my_lab'?" in refused("./my_lib", tmp_path)
    assert f"none is in {tmp_path}" in refused("my_metods", tmp_path)
    assert refused("my_metods", tmp_path).endswith("; did you mean 'my_methods'?")
    assert refused("numpi", tmp_path).endswith("; did you mean 'numpy'?")
    assert refused("numpy.lynalg", tmp_path) == (
        "cannot import numpy.lynalg: ModuleNotFoundError: No module named 'numpy.lynalg'"
    )
    assert "did you mean" not in refused("qqqqqqqqqqq", tmp_path)


def test_what_cannot_be_a_module_is_told(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "x.py")
    write(tmp_path / "my-methods.py")
    write(tmp_path / "notes.txt")
    write(tmp_path / "class.py")
    assert refused("./folder", tmp_path).endswith("folder/__init__.py does not exist")
    assert "'my-methods' is no name of a module" in refused("my-methods.py", tmp_path)
    assert "'class' is no name of a module" in refused("class.py", tmp_path)
    assert "'notes.txt' is no name of a module" in refused("./notes.txt", tmp_path)


@pytest.mark.parametrize("name", ["random", "carft_sweep"])
def test_a_file_named_like_another_module_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.py", "raise AssertionError\n")
    message = refused(f"./{name}.py", tmp_path)
    assert f"the name '{name}' is taken by another module (" in message
    assert message.endswith("rename yours")


def test_two_files_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "my_methods.py")
    second = write(tmp_path / "b" / "my_methods.py")
    load([str(first)])
    with pytest.raises(RequestError, match=f"taken by another module .{first}"):
        load([str(second)])
