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
        with pytest.raises(RequestError, match=r"it lies in the home\. If you trust it: --trust-"):
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
    properties = sweep_schema()["properties"]
    assert "mine" in properties["trial"]["properties"]["algorithm"]["anyOf"][0]["enum"]
    assert "algorithm.pull" in properties["parameters"]["properties"]


def test_a_file_is_imported_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    text = f"with open({str(counter)!r}, 'a') as file:\n    file.write('x')\n"
    write(tmp_path / "my_methods.py", text)
    for _ in range(3):
        load(resolve(["my_methods.py", "./my_methods.py", "my_methods"], tmp_path))
    assert counter.read_text() == "x"


def test_paths_and_names_are_looked_for_beside_the_sweep_file_and_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, current = tmp_path / "lab", tmp_path / "here"
    file, package = write(lab / "my_methods.py"), write(lab / "my_lab" / "__init__.py")
    write(lab / "json.py")
    write(current / "my_methods.py")
    only_here = write(current / "my_own" / "methods.py")
    monkeypatch.chdir(current)
    monkeypatch.syspath_prepend(current)  # as `python -m` does
    monkeypatch.setenv("HOME", str(lab))
    for items, paths in (
        (["my_methods.py", "./my_lab", "../lab/my_methods.py"], (file, package, file)),
        (["~/my_methods.py", str(file)], (file, file)),
        (["json", "my_methods", "my_own.methods"], ("json", file, only_here)),
    ):
        assert resolve(items, lab) == tuple(map(str, paths))
    assert resolve([str(file), "~/my_methods.py"], current) == (str(file), str(file))


def test_a_file_of_a_package_is_imported_as_a_part_of_it_and_one_beside_it_hides_nothing(
    tmp_path: Path,
) -> None:
    write(tmp_path / "my_lab" / "__init__.py")
    write(tmp_path / "my_lab" / "deep" / "__init__.py")
    write(tmp_path / "my_lab" / "deep" / "methods.py", f"from ..scale import SCALE\n{METHOD}")
    write(tmp_path / "my_lab" / "scale.py", "SCALE = 1\n")
    load(resolve(["./my_lab/deep/methods.py"], tmp_path))
    assert ALGORITHMS["mine"].__module__ == "my_lab.deep.methods"
    write(tmp_path / "my_methods.py", "import json, beside_it\nassert json.dumps\n")
    write(tmp_path / "beside_it.py")
    for installed in ("json", "torch"):
        write(tmp_path / f"{installed}.py", "raise AssertionError\n")
    load(resolve(["my_methods.py"], tmp_path))
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
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
def test_a_broken_module_has_its_line(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path / "my_methods.py", text)
    write(tmp_path / "beside_it.py", "def f():\n    {}['x']\n")
    message = refused("my_methods.py", tmp_path)
    assert message == f"cannot import {file}: {reason.format(file=file, folder=tmp_path)}"


def test_a_module_that_was_mended_is_imported_at_the_next_try(tmp_path: Path) -> None:
    file = write(tmp_path / "my_methods.py", f"{METHOD}\nfoo\n")
    assert "NameError" in refused("my_methods.py", tmp_path)
    file.write_text(METHOD)
    load(resolve(["my_methods.py"], tmp_path))
    assert sys.modules["my_methods"].__file__ == str(file)


def test_what_is_not_there_or_can_be_no_module_is_told_with_the_nearest_name(
    tmp_path: Path,
) -> None:
    for name in ("my_methods.py", "my_lab/__init__.py", "folder/x.py", "my-methods.py"):
        write(tmp_path / name)
    for name in ("notes.txt", "class.py", "random.py", "carft_sweep.py"):
        write(tmp_path / name, "raise AssertionError\n")
    for item, fragment in {
        "./my_method.py": f"import: {tmp_path}/my_method.py does not exist; did you mean 'my_meth",
        "./my_lib": "did you mean 'my_lab'?",
        "my_metods": f"none is in {tmp_path}",
        "my_metod": "; did you mean 'my_methods'?",
        "numpi": "; did you mean 'numpy'?",
        "numpy.lynalg": "cannot import numpy.lynalg: ModuleNotFoundError: No module named 'num",
        "./folder": "folder/__init__.py does not exist",
        "my-methods.py": "'my-methods' is no name of a module",
        "class.py": "'class' is no name of a module",
        "./notes.txt": "'notes.txt' is no name of a module",
        "./random.py": "the name 'random' is taken by another module (",
        "./carft_sweep.py": "the name 'carft_sweep' is taken by another module (",
    }.items():
        assert fragment in refused(item, tmp_path)
    assert refused("./random.py", tmp_path).endswith("rename yours")
    assert "did you mean" not in refused("qqqqqqqqqqq", tmp_path)


def test_two_files_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "my_methods.py")
    second = write(tmp_path / "b" / "my_methods.py")
    load([str(first)])
    with pytest.raises(RequestError, match=f"taken by another module .{first}"):
        load([str(second)])
