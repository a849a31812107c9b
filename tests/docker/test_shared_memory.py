"""What workers of data loaders hold in shared memory fits into every shipped container's."""

from __future__ import annotations

import pytest

from carft_sweep.carft_core.config.trial import EVALUATED
from carft_sweep.carft_core.data.loader import MOST_WORKERS
from carft_sweep.sweeps.spec.spec import load_spec
from tests.docker.composed import ROOT, services
from tests.docker.test_kuberay import ray_manifests, templates

IMAGE = 3 * 224 * 224
"""Bytes of one view, of which a worker hands on whole batches."""
PREFETCHED = 2
"""Batches that torch's loader asks of each worker in advance."""
OBJECTS = 500_000_000
"""Of Ray's store, as the manifests set it."""
UNITS = {"Gi": 2**30, "Mi": 2**20}


def needed() -> int:
    """Of one run of the shipped recipe with the largest batch, while it trains and validates."""
    config = load_spec(ROOT / "sweeps/imagenet.yaml").trial
    images = config["optim"]["batch_size"] + EVALUATED
    return OBJECTS + MOST_WORKERS * PREFETCHED * images * IMAGE


def quantity(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.mark.parametrize("overrides", [(), ("compose.gpu.yaml",)])
@pytest.mark.parametrize("name", ["ray-head", "ray-worker", "carft"])
def test_compose_gives_its_nodes_enough(overrides: tuple[str, ...], name: str) -> None:
    service = services(*overrides)[name]
    assert needed() < int(service["shm_size"])
    store = [word for word in service["command"] or [] if "object-store" in word]
    assert store == ([] if name == "carft" else [f"--object-store-memory={OBJECTS}"])


@pytest.mark.parametrize("group", templates())
def test_kubernetes_gives_its_pods_enough(group: str) -> None:
    pod = templates()[group]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    shared = volumes[mount["name"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    most = quantity(container["resources"]["limits"]["memory"])
    assert needed() < quantity(shared["sizeLimit"]) < most


def test_ray_keeps_to_its_part_under_kubernetes() -> None:
    spec = ray_manifests()["cluster.yaml"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"]["object-store-memory"] == str(OBJECTS)
