"""What compose.yaml promises of every service: limits, health, secrets by file, a closed door."""

from __future__ import annotations

import configparser
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from ray.scripts.scripts import start as ray_start

from tests.docker.composed import DOCKER, ROOT, composed, services

BOTH = [(), ("compose.gpu.yaml",)]
EACH = [
    pytest.param(overrides, name, id="+".join((*overrides, name)))
    for overrides in BOTH
    for name in services(*overrides)
]
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL")


def is_once(service: dict[str, Any]) -> bool:
    return service.get("restart") == "no"


@pytest.mark.parametrize(("overrides", "name"), EACH)
def test_a_service_has_a_health_check_or_ends_of_itself(
    overrides: tuple[str, ...], name: str
) -> None:
    service = services(*overrides)[name]
    check = service["healthcheck"]
    assert check.get("disable", False) == is_once(service)
    if not is_once(service):
        assert service["restart"] == "unless-stopped"
        assert check["test"][0] == "CMD"
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize(("overrides", "name"), EACH)
def test_a_service_has_limits_and_no_rights(overrides: tuple[str, ...], name: str) -> None:
    service = services(*overrides)[name]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user") != "root"


@pytest.mark.parametrize(("overrides", "name"), EACH)
def test_an_image_has_a_version_and_is_ours_or_needs_no_build(
    overrides: tuple[str, ...], name: str
) -> None:
    service = services(*overrides)[name]
    image, _, tag = service["image"].partition(":")
    assert re.match(r"\d+\.\d+", tag), service["image"]
    assert ("build" in service) == (image == "carft-sweep")
    if "build" in service:
        assert tag.endswith(f"-{service['build']['target']}")
        dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
        assert f" AS {service['build']['target']}\n" in dockerfile


@pytest.mark.parametrize(("overrides", "name"), EACH)
def test_a_secret_is_a_file_wherever_it_is_named(overrides: tuple[str, ...], name: str) -> None:
    service = services(*overrides)[name]
    mounted = {secret["target"] for secret in service.get("secrets", [])}
    words = list(service.get("command") or [])
    for variable, value in (service.get("environment") or {}).items():
        words.append(value)
        if SECRET_NAME.search(variable):
            assert variable.endswith(("_FILE", "_PATH")), variable
            assert value in mounted, f"{variable}: {value}"
        assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{variable} has a password in its URL"
    named = {path for word in words for path in re.findall(r"/run/secrets/\w+", word)}
    assert named == mounted


def test_no_secret_has_a_value_in_a_file_of_the_project() -> None:
    made = composed()["secrets"]
    assert made
    for secret in made.values():
        assert set(secret) == {"name", "file"}
        assert secret["file"].startswith(str(DOCKER / "secrets") + "/")
    settings = (DOCKER / ".env.example").read_text()
    assert not SECRET_NAME.search("\n".join(re.findall(r"^\w+(?==)", settings, re.MULTILINE)))


def test_a_worker_has_no_secret_but_rays_token() -> None:
    worker = services()["ray-worker"]
    assert [secret["source"] for secret in worker["secrets"]] == ["ray_token"]


def test_only_mlflow_and_the_dashboard_are_published_and_only_here() -> None:
    published = {
        (name, port["host_ip"], port["target"])
        for name, service in services().items()
        for port in service.get("ports", [])
    }
    assert published == {("mlflow", "127.0.0.1", 5000), ("ray-head", "127.0.0.1", 8265)}


def test_databases_and_store_have_no_way_out_and_sweeps_none_to_the_store() -> None:
    project = composed()
    open_ones = {name for name, net in project["networks"].items() if not net.get("internal")}
    assert open_ones == {"outside"}
    within = {name: set(service["networks"]) for name, service in services().items()}
    assert within["postgres"] == {"inside"}
    assert within["s3"] == {"store"}
    assert within["ray-worker"] == {"outside"}
    assert {name for name, nets in within.items() if "store" in nets} == {
        "s3",
        "s3-bucket",
        "mlflow",
    }


def test_who_waits_for_a_service_waits_until_it_serves_or_has_ended() -> None:
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            expected = (
                "service_completed_successfully"
                if is_once(services()[other])
                else "service_healthy"
            )
            assert how["condition"] == expected, f"{name} on {other}"


def test_state_is_kept_in_named_volumes() -> None:
    kept = {
        volume["source"]
        for service in services().values()
        for volume in service.get("volumes", [])
        if volume["type"] == "volume" and "source" in volume
    }
    assert kept == set(composed()["volumes"]) == {"postgres", "s3", "home"}


def test_every_database_is_another_one() -> None:
    users = configparser.ConfigParser()
    users.read(DOCKER / "server" / "basic_auth.ini")
    urls = {
        services()["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"],
        services()["ray-head"]["environment"]["CARFT_OPTUNA_STORAGE"],
        users["mlflow"]["database_uri"],
    }
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
    def devices(service: dict[str, Any]) -> list[Any]:
        found: list[Any] = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        return found

    with_gpus = services("compose.gpu.yaml")
    assert [name for name, service in with_gpus.items() if devices(service)] == ["ray-worker"]
    assert with_gpus["ray-worker"]["build"]["target"] == "cuda"
    assert not any(devices(service) for service in services().values())


def test_the_settings_name_the_version_that_this_is() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    settings = (DOCKER / ".env.example").read_text()
    assert f"\nCARFT_VERSION={version}\n" in settings
    assert settings.count(version) == 1
    pinned = re.findall(r"CARFT_VERSION:-([^}]+)\}", (DOCKER / "compose.yaml").read_text())
    assert set(pinned) == {version}


def variables_used() -> Iterator[str]:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        yield from re.findall(r"\$\{(\w+)", (DOCKER / name).read_text())


def test_every_setting_is_explained_and_used() -> None:
    explained = re.findall(r"^(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(set(variables_used()))


def test_pages_from_elsewhere_may_call_mlflow_only_when_they_are_named() -> None:
    """What MLflow takes for a pattern would let pages of other hosts read every run."""
    assert "--cors-allowed-origins=" in services()["mlflow"]["command"]
