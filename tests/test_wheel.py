"""The built wheel, beside nothing but what it requires: no clone, no Ray, no developer's tool."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.services.processes import ended

ROOT = Path(__file__).parent.parent
PACKAGES = ("carft_core", "sweeps", "tracking")
SMALL = (
    *("trial.optim.epochs=1", "seeds=[0]", "trial.data.train_fraction=0.1"),
    "parameters.algorithm.kl_weight.values=[1]",
)
"""One run of each method, on few images."""


def build(kind: str, tree: Path, folder: Path) -> Path:
    words = (sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder)
    done = ended(*words, folder=tree)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("carft_sweep-*")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source archive of this tree, as an index gets both."""
    folder = tmp_path_factory.mktemp("wheel")
    source = build("sdist", ROOT, folder / "source")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / source.name.removesuffix(".tar.gz"), folder / "built")


def test_it_holds_every_file_of_the_packages_and_the_licences(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    # A pattern of all files would pass over folders that are links.
    places = (ROOT / "carft_sweep", *(ROOT / "carft_sweep" / package for package in PACKAGES))
    files = {
        str(path.relative_to(ROOT))
        for place in places
        for path in place.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert "carft_sweep/sweeps/kl_weight.yaml" in files
    assert {name for name in names if ".dist-info/" not in name} == files
    licences = {Path(name).name for name in names if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def required() -> Iterator[metadata.Distribution]:
    """What the wheel requires without its extras, and what that requires: as pip installs it."""
    waiting = [("carft-sweep", frozenset[str]())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        distribution = metadata.distribution(name)
        if name != "carft-sweep":
            yield distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                continue
            wanted = (requirement.name, frozenset(requirement.extras))
            if wanted not in seen:
                seen.add(wanted)
                waiting.append(wanted)


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and by links what it requires."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in required():
        tops = {Path(file).parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            installed = Path(str(distribution.locate_file(top)))
            if installed.exists() and not (packages / top).exists():
                (packages / top).symlink_to(installed)
    zipfile.ZipFile(wheel).extractall(packages)
    return folder / "bin" / "python"


def call(python: Path, folder: Path, *words: str) -> str:
    done = alone(python, folder, "-m", "carft_sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def alone(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What Python does in a folder of its own, with nothing of this environment's."""
    environ = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return ended(python, "-P", *words, environ=environ, folder=folder, limit=240)


@pytest.mark.slow  # that what needs Ray says so is told by the same wheel, in the same environment
def test_it_runs_the_first_sweep_without_a_clone_and_takes_the_model_home(
    clean: Path, tmp_path: Path
) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    output = call(clean, tmp_path, "run", "kl_weight", *settings)
    assert "UNDECIDED" in output
    assert "car_ft" in call(clean, tmp_path, "compare", "kl_weight")
    assert (tmp_path / ".carft" / "sweeps" / "kl_weight" / "report.html").is_file()
    call(clean, tmp_path, "export", "kl_weight", "--out", "model")
    assert (tmp_path / "model" / "open_clip_config.json").is_file()


NEEDS_RAY = """
import sys
from carft_sweep.sweeps.cli import main
for line in sys.argv[1:]:
    print(main(line.split()))
"""


def test_what_needs_ray_says_how_to_get_it(clean: Path, tmp_path: Path) -> None:
    lines = ["run kl_weight --engine ray", "check kl_weight --address 127.0.0.1:6379"]
    lines.append("submit kl_weight --home /shared")
    done = alone(clean, tmp_path, "-c", NEEDS_RAY, *lines)
    assert done.stdout.split() == ["2"] * len(lines), done.stderr
    assert done.stderr.count('pip install "carft-sweep[ray]"') == len(lines)
    assert "Traceback" not in done.stderr
