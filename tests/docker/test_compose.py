"""What compose.yaml promises of every service: limits, health, secrets by file, a closed door; and
docs/server.md says what is there.
"""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start as ray_start

from tests.docker.composed import DOCKER, ROOT, composed, services

EACH = [
    pytest.param(overrides, name, id="+".join((*overrides, name)))
    for overrides in [(), ("compose.gpu.yaml",)]
    for name in services(*overrides)
]
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL")
SETTINGS = (DOCKER / ".env.example").read_text()


def is_once(service: dict[str, Any]) -> bool:
    return service.get("restart") == "no"


@pytest.mark.parametrize(("overrides", "name"), EACH)
def test_a_service_has_a_version_limits_health_no_rights_and_secrets_by_file(
    overrides: tuple[str, ...], name: str
) -> None:
    service = services(*overrides)[name]
    check = service["healthcheck"]
    assert check.get("disable", False) == is_once(service)
    if not is_once(service):
        assert (service["restart"], check["test"][0]) == ("unless-stopped", "CMD")
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)

    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["read_only"]
    assert service["init"]
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert not {"cap_add", "privileged"} & {*service}
    assert service.get("user") != "root"

    image, _, tag = service["image"].partition(":")
    assert re.match(r"\d+\.\d+", tag), service["image"]
    assert ("build" in service) == (image == "carft-sweep")
    if "build" in service:
        assert tag.endswith(f"-{service['build']['target']}")
        dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
        assert f" AS {service['build']['target']}\n" in dockerfile

    mounted = {secret["target"] for secret in service.get("secrets", [])}
    words = list(service.get("command") or [])
    for variable, value in (service.get("environment") or {}).items():
        words.append(value)
        if SECRET_NAME.search(variable):
            assert variable.endswith(("_FILE", "_PATH")), variable
            assert value in mounted, f"{variable}: {value}"
        assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{variable} has a password in its URL"
    assert {path for word in words for path in re.findall(r"/run/secrets/\w+", word)} == mounted


def test_no_secret_has_a_value_in_a_file_of_the_project_and_a_worker_has_only_rays_token() -> None:
    made = composed()["secrets"]
    assert made
    for secret in made.values():
        assert set(secret) == {"name", "file"}
        assert secret["file"].startswith(str(DOCKER / "secrets") + "/")
    assert not SECRET_NAME.search("\n".join(re.findall(r"^\w+(?==)", SETTINGS, re.MULTILINE)))
    assert [secret["source"] for secret in services()["ray-worker"]["secrets"]] == ["ray_token"]


def test_only_mlflow_and_the_dashboard_are_published_and_only_here() -> None:
    ports = [(name, port) for name in services() for port in services()[name].get("ports", [])]
    published = {(name, port["host_ip"], port["target"]) for name, port in ports}
    assert published == {("mlflow", "127.0.0.1", 5000), ("ray-head", "127.0.0.1", 8265)}
    # What MLflow takes for a pattern would let pages of other hosts read every run.
    assert "--cors-allowed-origins=" in services()["mlflow"]["command"]


def test_databases_and_store_have_no_way_out_and_sweeps_none_to_the_store() -> None:
    networks = composed()["networks"].items()
    assert {name for name, net in networks if not net.get("internal")} == {"outside"}
    within = {name: set(service["networks"]) for name, service in services().items()}
    alone = {name: within[name] for name in ("postgres", "s3", "ray-worker")}
    assert alone == {"postgres": {"inside"}, "s3": {"store"}, "ray-worker": {"outside"}}
    stored = {name for name, nets in within.items() if "store" in nets}
    assert stored == {"s3", "s3-bucket", "mlflow"}


def test_who_waits_for_a_service_waits_until_it_serves_or_has_ended() -> None:
    ends = {True: "service_completed_successfully", False: "service_healthy"}
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == ends[is_once(services()[other])], f"{name} on {other}"


def test_state_is_kept_in_named_volumes_and_in_databases_that_differ() -> None:
    mounts = [mount for service in services().values() for mount in service.get("volumes", [])]
    volumes = {mount.get("source") for mount in mounts if mount["type"] == "volume"} - {None}
    assert volumes == set(composed()["volumes"]) == {"postgres", "s3", "home"}
    users = configparser.ConfigParser()
    users.read(DOCKER / "server" / "basic_auth.ini")
    mlflow, head = (services()[name]["environment"] for name in ("mlflow", "ray-head"))
    urls = {mlflow["MLFLOW_BACKEND_STORE_URI"], head["CARFT_OPTUNA_STORAGE"]}
    urls.add(users["mlflow"]["database_uri"])
    assert {url.rpartition("/")[2] for url in urls} == {"mlflow", "mlflow_auth", "optuna"}


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_knows_the_options_that_it_is_started_with(name: str) -> None:
    service = services()[name]
    verb, *options = service["command"]
    assert (service["entrypoint"], verb) == (["ray"], "start")
    known = {option for parameter in ray_start.params for option in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_the_gpus_go_to_the_workers_alone() -> None:
    def with_devices(of: dict[str, dict[str, Any]]) -> list[str]:
        wanted = {name: service["deploy"]["resources"] for name, service in of.items()}
        return [name for name in wanted if wanted[name].get("reservations", {}).get("devices")]

    with_gpus = services("compose.gpu.yaml")
    assert with_devices(with_gpus) == ["ray-worker"]
    assert with_gpus["ray-worker"]["build"]["target"] == "cuda"
    assert with_devices(services()) == []


def test_every_setting_is_explained_and_used_and_the_version_is_this_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nCARFT_VERSION={version}\n" in SETTINGS
    assert SETTINGS.count(version) == 1
    files = [(DOCKER / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml")]
    assert set(re.findall(r"CARFT_VERSION:-([^}]+)\}", files[0])) == {version}
    explained = re.findall(r"^(\w+)=", SETTINGS, re.MULTILINE)
    assert sorted(explained) == sorted({*re.findall(r"\$\{(\w+)", "".join(files))})


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
