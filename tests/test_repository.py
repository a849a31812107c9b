"""The repository keeps its promises: light commands, a whole wheel, live links, honest ranges."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import carft_sweep
from tests.services.processes import ended
from tools.lock import environments, select, unlocked

ROOT = Path(__file__).parent.parent
PACKAGES = ("carft_core", "sweeps", "tracking")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def modules_after(code: str, *, cwd: Path) -> list[str]:
    """Those in a fresh interpreter after `code`, wherever it exits."""
    script = (
        "import atexit, json, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "told = sys.__stdout__\n"
        "atexit.register(lambda: told.write('\\n' + json.dumps(sorted(sys.modules))))\n"
        f"{code}"
    )
    done = ended(sys.executable, "-c", script, folder=cwd)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


HEAVY = {"torch", "torchvision", "open_clip", "ray", "mlflow", "optuna"}
READS = ("sweeps.home", "sweeps.ledger.ledger", "sweeps.engines.base")
"""What only reads the home, and so has no training core."""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("from carft_sweep.sweeps.cli import main\nsys.exit(main(['list']))", HEAVY),
        ("import carft_sweep.sweeps.cli.compare", HEAVY | {"altair"}),
        *((f"import carft_sweep.{module}", HEAVY | {"pydantic"}) for module in READS),
    ],
)
def test_what_is_light_loads_nothing_heavy(code: str, heavy: set[str], tmp_path: Path) -> None:
    loaded = modules_after(code, cwd=tmp_path)
    assert "carft_sweep.sweeps" in loaded
    assert not heavy & {name.split(".")[0] for name in loaded}
    core = {name for name in loaded if name.startswith("carft_sweep.carft_core.")}
    if code.endswith(READS):
        parts = {name.removeprefix("carft_sweep.carft_core.") for name in core}
        assert parts <= {"errors", "files", "runs", "runs.result"}


def test_a_users_packages_may_have_the_names_of_ours(tmp_path: Path) -> None:
    # Weights & Biases publishes a package named `sweeps`; a lab has its own `tracking`.
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    code = (
        "import importlib, carft_sweep\n"
        f"for name in {PACKAGES!r}:\n"
        "    print(importlib.import_module(name).__file__)\n"
        "    print(importlib.import_module(f'carft_sweep.{name}').__file__)\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = ended(sys.executable, "-c", code, environ=environ, folder=tmp_path)
    folders = (tmp_path, ROOT / "carft_sweep")
    files = [str(at / name / "__init__.py") for name in PACKAGES for at in folders]
    assert done.stdout.split() == files


def test_the_package_has_its_version_and_the_names_that_it_says() -> None:
    assert carft_sweep.__version__ == metadata.version("carft-sweep")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == carft_sweep.__version__
    assert citation["references"][0]["url"].endswith("/2211.16175")
    assert sorted(carft_sweep._MODULES) == sorted(carft_sweep.__all__)
    for name in carft_sweep.__all__:
        assert getattr(carft_sweep, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'run_sweeps'"):
        carft_sweep.run_sweeps  # noqa: B018


def requirements() -> Iterator[tuple[str, Requirement]]:
    for text in PROJECT["project"]["dependencies"]:
        yield "run", Requirement(text)
    for extra, texts in PROJECT["project"]["optional-dependencies"].items():
        for text in texts:
            if not text.startswith(PROJECT["project"]["name"]):  # other extras of our own
                yield extra, Requirement(text)


LOCK = (ROOT / "requirements.lock").read_text()


def pins(*environments: str) -> dict[str, Version]:
    lines = re.findall(r"^([\w.-]+)==(\S+)", select(LOCK, environments), re.MULTILINE)
    return {canonical(name): Version(version) for name, version in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


CHOSEN_BY_THE_MACHINE = {"torch", "torchvision"}


# The last version with a hole that reaches this product, and its advisory.
HOLES = {
    "jinja2": ("3.1.5", "CVE-2025-27516"),
    "mlflow": ("3.16.1", "CVE-2026-115886"),
    "pillow": ("12.3.0", "CVE-2026-96639"),
    "ray": ("2.58.1", "CVE-2025-62593, and no token in a cluster of this machine"),
    "requests": ("2.32.3", "CVE-2024-47081"),
    "torch": ("2.9.1", "CVE-2026-24747"),
}


def test_a_requirement_has_a_lower_bound_no_known_hole_and_a_pin_within_its_range() -> None:
    pinned = pins("dev")
    for extra, requirement in requirements():
        name, label = canonical(requirement.name), f"{extra}: {requirement}"
        bounds = {specifier.operator for specifier in requirement.specifier}
        assert name.startswith("types-") or ">=" in bounds, label
        assert bounds <= {">=", "<"}, f"{label} is a pin; pins stand in the lock"
        if name not in CHOSEN_BY_THE_MACHINE:
            assert requirement.specifier.contains(pinned[name]), label
        if name in HOLES:
            assert not requirement.specifier.contains(HOLES[name][0]), f"{label}: {HOLES[name][1]}"


def test_the_lock_leaves_the_build_of_torch_to_the_machine_and_has_hashes_of_all_else() -> None:
    pinned = pins(*environments(PROJECT))
    assert not CHOSEN_BY_THE_MACHINE & set(pinned)
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [name for name, version in pinned.items() if version.local]
    assert {Requirement(text).name for text in unlocked(PROJECT)} == CHOSEN_BY_THE_MACHINE
    parts = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)
    assert parts[0].endswith("\n--only-binary :all:\n"), "nothing is built"
    for part in parts[1:]:
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", part, re.MULTILINE), part
    assert len(parts) - 1 == len(pinned)


@pytest.mark.parametrize("name", environments(PROJECT))
def test_an_environment_of_the_lock_has_what_it_asks_for_and_its_packages_require(
    name: str,
) -> None:
    pinned = pins(name)
    required = [Requirement(text) for text in environments(PROJECT)[name]]
    for package, version in pinned.items():
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:  # for another system, or not there yet
            continue
        if Version(distribution.version) == version:
            required += [Requirement(text) for text in distribution.requires or ()]
    required = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    lacking = {
        str(requirement)
        for requirement in required
        if (package := canonical(requirement.name)) not in CHOSEN_BY_THE_MACHINE
        if package not in pinned
        or not requirement.specifier.contains(pinned[package], prereleases=True)
    }
    assert lacking == set()


def text_files() -> Iterator[Path]:
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    listed = ended(*command, folder=ROOT).stdout
    for name in listed.split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in path.read_bytes()[:8000]:
            yield path


def test_no_file_names_a_package_index() -> None:
    # Where packages come from is pip's and npm's configuration, and the user's (decision 5).
    parts = (("pypi",), ("download", "pytorch"), ("registry", "npmjs"), ("deb", "debian"))
    indexes = tuple(".".join((*host, "")) for host in parts)  # in parts: nor does this file
    hosts = re.compile("|".join(re.escape(name) + "org" for name in indexes) + "|--index-url")
    hits = [
        f"{path.relative_to(ROOT)}: {hit.group()}"
        for path in text_files()
        if path != Path(__file__)
        for hit in hosts.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert hits == []


LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them, and of generated rows."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    named = re.findall(r"\{ #(\S+) \}|<a id=\"([^\"]+)\">", text)
    return {re.sub(r"\s+", "-", heading) for heading in plain} | {a or b for a, b in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_relative_link_is_dead(page: Path) -> None:
    dead = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(target)
    assert dead == []


def test_the_tests_of_a_file_share_a_process(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("the tests were not given to several processes by their groups")
    # As pytest-xdist hands a group on, which pytest's next release may not let it do.
    assert request.node.nodeid.endswith("@tests/test_repository.py")
