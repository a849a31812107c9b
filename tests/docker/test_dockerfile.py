"""The Dockerfile: what its linter says, what it pins, and what the builder may see."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.docker.composed import DOCKER, ROOT
from tests.services.processes import ended
from tools.lock import environments, select

DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def ancestry(stage: str) -> list[str]:
    """The stage and those that it begins from, the first one last."""
    lines = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    begins = {name: base for base, name in lines}
    lineage = [stage]
    while begins[lineage[-1]] in begins:
        lineage.append(begins[lineage[-1]])
    return lineage


def test_hadolint_finds_nothing() -> None:
    done = ended(Path(sys.executable).parent / "hadolint", DOCKER / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_is_a_version_of_a_slim_image() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    foreign = [image for image in images if image not in stages()]
    assert foreign == ["python:${PYTHON}${PYTHON_DIGEST}"]
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("target", ["cpu", "cuda", "server"])
def test_what_is_published_runs_as_nobody_with_a_health_check_and_no_installer(target: str) -> None:
    text = "".join(stages()[stage] for stage in reversed(ancestry(target)))
    assert "builder" not in "".join(ancestry(target))
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
    for word in ("HEALTHCHECK ", "ENTRYPOINT [", "STOPSIGNAL SIGTERM", "LABEL "):
        assert word in text
    installs = re.findall(r"\b(?:pip|apt-get|curl|gcc) .*", text)
    compiler = "apt-get install -y --no-install-recommends gcc libc6-dev && \\"
    assert installs == (["apt-get update && \\", compiler] if target == "cuda" else [])
    # Roots are read-only, and so is a home folder in them: what compile makes lies elsewhere.
    places = re.findall(r"(TRITON|TORCHINDUCTOR)_CACHE_DIR=/tmp/", text)
    assert places == (["TRITON", "TORCHINDUCTOR"] if target == "cuda" else [])


def test_every_installation_is_held_by_hashes_and_torch_by_its_version() -> None:
    joined = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"(?:pip|python) install (.*?)(?:&&|$)", joined, re.MULTILINE)
    installs = [" ".join(words.split()) for words in installs]
    torch = '--no-deps "torch==${TORCH}" "torchvision==${TORCHVISION}"'
    own = "--no-deps --no-index --find-links /wheels carft-sweep"
    assert (installs.count(torch), installs.count(own)) == (1, 2)  # ours in both environments
    # It finds torch there, and brings what its build says it needs.
    assert installs.index("-r torch.txt") > installs.index(torch)
    locked = [words for words in installs if words not in (torch, own, "-r torch.txt")]
    assert len(locked) == 3
    for words in locked:
        assert re.fullmatch(r"--no-deps --require-hashes -r [\w-]+\.txt", words)


def test_every_environment_is_one_of_the_lock_and_is_whole() -> None:
    selected = re.findall(r"lock\.py select (\S+)", DOCKERFILE)
    assert sorted(selected) == ["build-system", "cluster", "server"]
    assert set(selected) <= set(environments(PYPROJECT))
    for stage in ("node-packages", "server-packages"):
        assert re.search(r"pip( --python \S+)? check$", stages()[stage], re.MULTILINE)


def test_mlflows_image_has_what_its_application_imports() -> None:
    """The image has the wheel without what that requires."""
    load = "import carft_sweep.tracking.ui_app; print(*sys.modules.keys() - before)"
    done = ended(sys.executable, "-c", f"import sys; before = {{*sys.modules}}; {load}")
    lock = (ROOT / "requirements.lock").read_text()
    node, server = (
        {*re.findall(r"^([\w.-]+)==", select(lock, [name]), re.MULTILINE)}
        for name in ("run", "server")
    )
    owners = metadata.packages_distributions()
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    imported = {owner.lower() for root in roots for owner in owners.get(root, ())}
    assert "starlette" in imported
    assert not imported & ({"torch", "torchvision"} | node - server)


def test_torch_is_a_version_that_the_project_allows() -> None:
    requirements = {Requirement(text) for text in PROJECT["dependencies"]}
    for package in ("torch", "torchvision"):
        (version,) = {*re.findall(rf"^ARG {package.upper()}=(\S+)$", DOCKERFILE, re.MULTILINE)}
        (allowed,) = (of.specifier for of in requirements if of.name == package)
        assert allowed.contains(version)


def test_the_builder_sees_only_what_is_copied_and_no_secret() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = " ".join(lines).split()
    assert let_in == {of if of in let_in else of.partition("/")[0] for of in sources}
    assert {"docker/.env", "docker/secrets", "docker/data"} <= set(rules)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "docker/secrets/", "docker/data/"} <= set(ignored)
