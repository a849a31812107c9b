"""docs/server.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docker.composed import DOCKER, ROOT, composed, services

PAGE = (ROOT / "docs" / "server.md").read_text()


def names_below(head: str, names: str) -> set[str]:
    return {*re.findall(names, PAGE.partition(head)[2].partition("\n\n")[0])}


def test_every_service_image_secret_and_build_argument_is_told_of() -> None:
    for name, service in services().items():
        assert f"`{name}`" in PAGE
        assert "build" in service or f"`{service['image']}`" in PAGE
    secrets = {Path(made["file"]).name for made in composed()["secrets"].values()}
    assert secrets <= names_below("| file | whose |", r"`(\w+(?:\.json)?)`")
    arguments = re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert names_below("| build argument | |", r"`([A-Z_]+)`") == {*arguments}
    every = [*services().values(), *services("compose.gpu.yaml").values()]
    built = {service["image"] for service in every if "build" in service}
    assert {*re.findall(r" -t (\S+) \.", PAGE)} == built


def test_who_comes_to_the_secrets_of_drivers_is_told() -> None:
    """Ray's token, which every node has, starts a task on the head, as the same user."""
    head, worker = services()["ray-head"], services()["ray-worker"]
    own = [s["source"] for s in head["secrets"] if s not in worker["secrets"]]
    (line,) = [part for part in PAGE.split("\n* ") if "whoever may submit" in part]
    assert all(f"`{name}`" in line for name in own)
    assert "ray_token" in [secret["source"] for secret in worker["secrets"]]
