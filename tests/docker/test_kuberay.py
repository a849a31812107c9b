"""The manifests: KubeRay's own fields exist, pods are what Kubernetes takes, and they are safe; and
what workers of data loaders hold in shared memory fits into every shipped container's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from ipaddress import ip_address, ip_network
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from sqlalchemy import make_url

from carft_sweep.carft_core.config.trial import EVALUATED
from carft_sweep.carft_core.data.loader import MOST_WORKERS
from carft_sweep.sweeps.secrets import NAMES
from carft_sweep.sweeps.spec.spec import load_spec
from tests.docker.composed import DOCKER, ROOT, services

FOLDER = DOCKER / "kuberay"
RAY = "ray.io/v1"
KUBERNETES = "1.30"
"""The oldest version that KubeRay's and Kubernetes' releases of today look after."""
_SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def check_fields(manifest: Mapping[str, Any]) -> None:
    """Raises jsonschema.ValidationError for a field of a RayCluster or RayJob that there is not."""
    jsonschema.Draft202012Validator(_SCHEMA).validate(manifest)


def check_pod(template: Mapping[str, Any]) -> None:
    """Raises kubernetes_validate's ValidationError for a template of pods that is wrong."""
    named = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
    kubernetes_validate.validate({**named, "template": template}, KUBERNETES, strict=True)


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] != "Kustomization":
                yield file.name, document


def ray_manifests() -> dict[str, dict[str, Any]]:
    return {file: manifest for file, manifest in manifests() if manifest["apiVersion"] == RAY}


def templates() -> dict[str, dict[str, Any]]:
    """The pods of the cluster and of the job with one of its own, by the group of each."""
    clusters = {
        "": ray_manifests()["cluster.yaml"]["spec"],
        "own ": ray_manifests()["rayjob.yaml"]["spec"]["rayClusterSpec"],
    }
    return {
        f"{prefix}{name}": template
        for prefix, spec in clusters.items()
        for name, template in (
            ("head", spec["headGroupSpec"]["template"]),
            *((group["groupName"], group["template"]) for group in spec["workerGroupSpecs"]),
        )
    }


def test_kuberay_and_kubernetes_have_every_field_and_notice_another() -> None:
    own = [manifest for _, manifest in manifests() if manifest["apiVersion"] != RAY]
    assert {manifest["kind"] for manifest in own} == {"PersistentVolumeClaim", "NetworkPolicy"}
    for manifest in own:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for manifest in ray_manifests().values():
        check_fields(manifest)
    wrong = ray_manifests()["cluster.yaml"]
    wrong["spec"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check_fields(wrong)


@pytest.mark.parametrize("group", templates())
def test_a_pod_has_limits_probes_a_network_policy_and_no_rights(group: str) -> None:
    check_pod(templates()[group])
    pod = templates()[group]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert not pod["automountServiceAccountToken"]
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    assert container["securityContext"] == {**rights, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert container["livenessProbe"]["httpGet"] == container["readinessProbe"]["httpGet"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for volume in pod["volumes"]:
        assert volume.get("emptyDir", {"sizeLimit": "none"})["sizeLimit"]
    assert POLICY["policyTypes"] == ["Ingress", "Egress"]
    labels = templates()[group]["metadata"]["labels"]
    assert labels.items() >= POLICY["podSelector"]["matchLabels"].items()


POLICY = yaml.safe_load((FOLDER / "network-policy.yaml").read_text())["spec"]


def test_of_other_namespaces_only_the_operators_comes_in() -> None:
    (own,) = POLICY["ingress"][0]["from"]
    assert own == {"podSelector": POLICY["podSelector"]}
    deploy = (ROOT / "docs" / "clusters" / "deploy.sh").read_text()
    pairs = [(rule, peer) for rule in POLICY["ingress"] for peer in rule["from"]]
    for rule, peer in pairs:
        if "namespaceSelector" in peer:
            namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            assert f"OPERATOR_NAMESPACE:-{namespace}}}" in deploy
            assert peer["podSelector"]["matchLabels"]
            assert rule["ports"] == [{"port": 8265, "protocol": "TCP"}]


def reached(address: str) -> bool:
    where = ip_address(address)
    peers = chain.from_iterable(rule["to"] for rule in POLICY["egress"])
    blocks = [peer["ipBlock"] for peer in peers if "ipBlock" in peer]
    open_blocks = [block for block in blocks if where in ip_network(block["cidr"])]
    return any(all(where not in ip_network(of) for of in b["except"]) for b in open_blocks)


def test_no_run_reaches_what_hands_out_the_rights_of_its_node() -> None:
    for address in ("169.254.169.254", "169.254.170.23", "100.100.100.200", "fd00:ec2::254"):
        assert not reached(address)
    # Names (also by a cache on the node), services of the cluster, a database, the hub.
    for address in ("10.96.0.10", "169.254.20.10", "192.168.7.5", "3.163.189.114", "2600:9000::1"):
        assert reached(address)
    assert {"to": [{"namespaceSelector": {}}]} in POLICY["egress"], "pods, where blocks are not"


@pytest.mark.parametrize("group", templates())
def test_every_pod_sees_the_home_and_writes_nowhere_else_but_in_scratch(group: str) -> None:
    pod = templates()[group]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    claims = [manifest["metadata"]["name"] for file, manifest in manifests() if file == "home.yaml"]
    assert volumes["home"]["persistentVolumeClaim"]["claimName"] in claims
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert mounts["home"]["mountPath"] == environment["CARFT_HOME"]
    assert f"CARFT_DATA={mounts['images']['mountPath']} " in (DOCKER / "Dockerfile").read_text()
    assert mounts["images"]["readOnly"]
    # Beside the bank lie Ray's logs, jobs and other caches; beyond the limit the pod is evicted.
    size = int(volumes["scratch"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
    assert 1e9 * float(environment.get("CARFT_BANK_GB", 0)) < 0.7 * size


@pytest.mark.parametrize("prefix", ["", "own "])
def test_secrets_are_files_of_the_head_alone_and_their_variables_are_known(prefix: str) -> None:
    (head,) = templates()[f"{prefix}head"]["spec"]["containers"]
    (mount,) = [mount for mount in head["volumeMounts"] if mount["name"] == "secrets"]
    assert mount["readOnly"]
    secret = [entry for entry in head["env"] if entry["name"] != "CARFT_HOME"]
    assert secret
    for entry in secret:
        assert entry["name"].removesuffix("_FILE") in NAMES
        assert entry["value"].startswith(f"{mount['mountPath']}/")
    (worker,) = templates()[f"{prefix}runs"]["spec"]["containers"]
    assert [entry["name"] for entry in worker["env"]] == ["CARFT_HOME", "CARFT_BANK_GB"]
    assert "envFrom" not in worker


def test_the_settings_have_no_password_and_send_nothing_over_an_open_line() -> None:
    """Without sslmode libpq takes plain text where the other side offers nothing else."""
    lines = (FOLDER / "settings.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "CARFT_OPTUNA_STORAGE")
    assert settings.keys() == {*names}
    url = make_url(settings["CARFT_OPTUNA_STORAGE"])
    assert (url.username, url.password) == ("optuna", None)
    assert url.query["sslmode"] == "verify-full"
    # Without one libpq looks for a file in the user's home folder, which a pod has not.
    assert url.query["sslrootcert"] == "/etc/ssl/certs/ca-certificates.crt"
    assert settings["MLFLOW_TRACKING_URI"].startswith("https://")


def test_kustomize_finds_what_it_names_and_takes_the_image_that_compose_builds() -> None:
    listed = {*KUSTOMIZATION["resources"], "kustomization.yaml", "job.yaml", "rayjob.yaml"}
    assert listed == {file.name for file in FOLDER.glob("*.yaml")}
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert [FOLDER / name for name in generated["envs"]] == [FOLDER / "settings.env"]
    pods = [pod for group, pod in templates().items() if not group.startswith("own ")]
    used = {pod["spec"]["containers"][0]["image"] for pod in pods}
    assert used == {KUSTOMIZATION["images"][0]["name"]}
    overriding = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    image = overriding["services"]["ray-worker"]["image"]
    assert image.endswith("-cuda")
    tag = KUSTOMIZATION["images"][0]["newTag"]
    assert tag in image.replace("${CARFT_VERSION:-", "").replace("}", "")


def test_the_job_with_its_own_cluster_is_that_cluster_with_an_image() -> None:
    job = ray_manifests()["rayjob.yaml"]["spec"]
    own, shared = job["rayClusterSpec"], ray_manifests()["cluster.yaml"]["spec"]
    (image,) = KUSTOMIZATION["images"]
    for spec in (own, shared):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            if spec is own:
                assert container["image"] == f"{image['newName']}:{image['newTag']}"
            del container["image"]
    (workers,) = own["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    workers["maxReplicas"] = shared["workerGroupSpecs"][0]["maxReplicas"]
    assert own == shared
    assert job["entrypoint"].endswith(" --home /carft")
    # KubeRay refuses a number of retries beside a selector of a cluster that is there.
    assert job["backoffLimit"]
    assert "clusterSelector" not in job
    text = (FOLDER / "rayjob.yaml").read_text()
    assert text.count("EDIT") == 8  # seven values, and the line that counts them


def test_the_job_goes_to_the_cluster_and_its_home_and_that_to_the_ray_that_is_pinned() -> None:
    job, cluster = (ray_manifests()[f"{name}.yaml"] for name in ("job", "cluster"))
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].endswith(" --home /carft")
    pinned = f"\nray=={cluster['spec']['rayVersion']} "
    assert pinned in (ROOT / "requirements.lock").read_text()
    assert version("ray") in pinned


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
