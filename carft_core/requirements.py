"""The versions that carft-sweep requires, as its own installed metadata says them.

They come from pyproject.toml, which says why each is the oldest one allowed.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from carft_sweep.carft_core.errors import RequestError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "carft-sweep"
OPTIONAL = ("ray", "server", "cluster")
"""The extras for those who use the product; the others are for its developers."""


def requirements() -> list[Requirement]:
    """Return the package's requirements, with those of OPTIONAL extras for installed packages; an
    empty list where only sources are installed."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return []

    def belongs_to(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    return [
        r
        for r in required
        if belongs_to(r, "")
        or (installed_version(r.name) and any(belongs_to(r, extra) for extra in OPTIONAL))
    ]


def installed_version(name: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missed_floor(requirement: Requirement) -> str | None:
    """Return the oldest allowed version where an older one is installed, else None. A build before
    a release counts as that release: NVIDIA's containers bring torch 2.10.0a0."""
    from packaging.version import Version

    version = installed_version(requirement.name)
    if version is None:
        return None
    release = Version(Version(version).base_version)
    floors = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return next((floor for floor in floors if release < Version(floor)), None)


def upgrade_command(requirement: Requirement) -> str:
    """Return the shell command that installs a version in the required range."""
    return f'pip install "{requirement.name}{requirement.specifier}"'


def refuse_outdated(name: str, risk: str) -> None:
    """Raise where a package is older than allowed, before an operation whose `risk` is named.

    Raises:
        RequestError: It is older; says `risk` and the command that upgrades it.
    """
    for requirement in requirements():
        if requirement.name == name and (floor := missed_floor(requirement)):
            raise RequestError(
                f"{risk}, and {name} {installed_version(name)} is older than {floor}, the oldest "
                f"version without known holes there: {upgrade_command(requirement)}"
            )
