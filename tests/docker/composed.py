"""What Docker Compose makes of docker/compose.yaml, with the settings of .env.example."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from tests.services.processes import ended

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """The resolved project, with every profile; `overrides` are files beside compose.yaml."""
    command = ["docker-compose", "--env-file", str(DOCKER / ".env.example"), "--profile", "*"]
    for name in ("compose.yaml", *overrides):
        command += ["--file", str(DOCKER / name)]
    # Nothing of the machine's own environment in its place.
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = ended(*command, "config", "--format", "json", environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # such as a variable without a value
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def services(*overrides: str) -> dict[str, dict[str, Any]]:
    by_name: dict[str, dict[str, Any]] = composed(*overrides)["services"]
    return by_name
