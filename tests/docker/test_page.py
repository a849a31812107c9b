"""docs/server.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docker.composed import DOCKER, ROOT, composed, services

PAGE = (ROOT / "docs" / "server.md").read_text()


def test_every_service_and_foreign_image_is_told_of() -> None:
    for name, service in services().items():
        assert f"`{name}`" in PAGE
        assert "build" in service or f"`{service['image']}`" in PAGE


def test_every_secret_is_told_of() -> None:
    table = PAGE.partition("| file | whose |")[2].partition("\n\n")[0]
    told = set(re.findall(r"`(\w+(?:\.json)?)`", table))
    assert {Path(made["file"]).name for made in composed()["secrets"].values()} <= told


def test_every_build_argument_is_told_of() -> None:
    arguments = set(re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    table = PAGE.partition("| build argument | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z_]+)`", table)) == arguments


def test_images_are_built_by_the_names_that_compose_has() -> None:
    built = {
        service["image"]
        for overrides in ((), ("compose.gpu.yaml",))
        for service in services(*overrides).values()
        if "build" in service
    }
    assert set(re.findall(r" -t (\S+) \.", PAGE)) == built


def test_who_comes_to_the_secrets_of_drivers_is_told() -> None:
    """Ray's token, which every node has, starts a task on the head, as the same user."""
    head, worker = services()["ray-head"], services()["ray-worker"]
    own = [s["source"] for s in head["secrets"] if s not in worker["secrets"]]
    (line,) = [part for part in PAGE.split("\n* ") if "whoever may submit" in part]
    assert all(f"`{name}`" in line for name in own)
    assert "ray_token" in [secret["source"] for secret in worker["secrets"]]
