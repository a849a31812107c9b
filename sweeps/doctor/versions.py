"""What is installed: Python, the packages, and carft-sweep itself."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from sweeps.doctor.base import Asked, Check, Finding, ok, warning, wrong
from sweeps.executions import Code
from sweeps.own_sources import ROOT, source_digest

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "carft-sweep"
SHOWN = ("torch", "torchvision", "open_clip_torch", "optuna", "mlflow", "ray", "SQLAlchemy")
"""Named with their versions, though others are checked as well."""
CLUSTER = "cluster"
"""The extra with what shared services need."""


def _own(_: Asked) -> Iterator[Finding]:
    """Two places run the same when this line is the same."""
    try:
        named = metadata.version(PROJECT)
    except metadata.PackageNotFoundError:
        named = "(not installed)"
    commit = Code.here().commit
    at = f", commit {commit[:12]} around the working folder" if commit else ""
    yield ok(f"{PROJECT} {named}, sources {source_digest()[:12]} in {ROOT}{at}")


def _python(_: Asked) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    here = platform.python_version()
    told = f"Python {here} on {platform.system()} {platform.machine()}"
    try:
        wanted = metadata.metadata(PROJECT)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        wanted = ""
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield ok(told)
    else:
        yield wrong(f"{told}; {PROJECT} needs {wanted}", "make a new environment with that Python")


def _packages(_: Asked) -> Iterator[Finding]:
    required = _required(PROJECT)
    if not required:
        yield warning(f"{PROJECT} is not installed as a package, so what it needs is not known")
        return
    yield from _judged(_wanted(required))
    versions = [f"{name} {version}" for name in SHOWN if (version := _version(name))]
    yield ok(", ".join(versions))


def _judged(required: Iterable[Requirement]) -> Iterator[Finding]:
    """What lies outside its range, or is missing."""
    for requirement in required:
        there = _version(requirement.name)
        if there is None:
            yield wrong(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(there, prereleases=True):
            yield wrong(f"{requirement.name} {there} is outside of {requirement.specifier}")


def _of_a_cluster(_: Asked) -> Iterator[Finding]:
    extra = list(_wanted(_required(PROJECT), CLUSTER))
    # What an extra of another package brings is in that one's own metadata.
    behind = [
        further
        for requirement in extra
        for of_it in requirement.extras
        for further in _wanted(_required(requirement.name), of_it)
    ]
    missing = sorted({one.name for one in (*extra, *behind) if _version(one.name) is None})
    if missing:
        yield ok(
            f"without {', '.join(missing)}; only shared databases, stores and job submission need "
            f'the extra: pip install "{PROJECT}[{CLUSTER}]"'
        )
    elif extra:
        yield ok(f"the extra {CLUSTER} is installed")


def _required(package: str) -> list[Requirement]:
    """Everything that its metadata asks for; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return []


def _wanted(required: Iterable[Requirement], extra: str = "") -> Iterator[Requirement]:
    """What the package itself needs here, or what one extra adds."""
    for requirement in required:
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != bool(extra) and (marker is None or marker.evaluate({"extra": extra})):
            yield requirement


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


CHECKS = (
    Check(
        "versions.own",
        "carft-sweep's version, and a digest of its sources, by which two machines are compared",
        "install carft-sweep again from one source on every machine",
        _own,
    ),
    Check(
        "versions.python",
        "Python against what the package asks for",
        "make a new environment with a Python that the package supports",
        _python,
    ),
    Check(
        "versions.packages",
        "every required package against the range that the package asks for",
        "pip install -c constraints.txt -e . brings the versions that were tested",
        _packages,
    ),
    Check(
        "versions.cluster",
        "the packages that shared databases, stores and job submission need",
        f'pip install "{PROJECT}[{CLUSTER}]"',
        _of_a_cluster,
    ),
)
