"""The manifest for KubeRay: its fields, its pods, and that no secret's value is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from carft_core.errors import RequestError
from sweeps.cli import main
from sweeps.submit.rayjob import LONGEST_NAME, name_of, reference
from tests.docker.kuberay import check_fields, check_pod
from tests.sweeps.submit.conftest import Git


def emitted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    assert main(["submit", "tiny.yaml", "--emit", "rayjob", *words]) == 0
    told = capsys.readouterr()
    made = yaml.safe_load(told.out)
    check_fields(made)
    return made, told.err


def test_the_manifest_has_kuberays_fields_and_valid_pods(
    git: Git, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    made, said = emitted(
        capsys,
        *("--image", "registry/carft:1", "--set", "resources={gpus: 0.5, cpus: 3}"),
        *("--parallel", "5", "--secret", "MLFLOW_TRACKING_PASSWORD=mlflow/password"),
        *("--set", "resources.custom={spot: 1}", "--env", "A=1"),
    )
    assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", "RayJob")
    spec = made["spec"]
    assert spec["entrypoint"].startswith("exec python -m sweeps run tiny.yaml --address auto --ho")
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment["MLFLOW_TRACKING_URI"] == "https://mlflow.example.org"
    assert environment["A"] == "1"
    assert spec["metadata"]["carft_commit"] == git("rev-parse", "HEAD")
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    check_pod(head["template"])
    check_pod(group["template"])
    assert group["replicas"] == 3
    assert group["rayStartParams"] == {"resources": "'{\"spot\": 1.0}'"}
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "6", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert worker["volumeMounts"][0] == {"name": "home", "mountPath": "/shared/home"}
    assert "env" not in worker
    (driver,) = head["template"]["spec"]["containers"]
    assert driver["env"] == [
        {
            "name": "MLFLOW_TRACKING_PASSWORD",
            "valueFrom": {"secretKeyRef": {"name": "mlflow", "key": "password"}},
        }
    ]
    assert "planted" not in yaml.safe_dump(made) + said
    assert "Not written, since secret: HF_TOKEN." in said
    assert "--working-dir" in said


def test_runs_get_the_secrets_that_they_need_themselves(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del project
    made, said = emitted(
        capsys,
        *("--image", "carft", "--secret", "HF_TOKEN=hf/token", "--workers", "2"),
        *("--working-dir", "s3://bucket/mine.zip", "--set", "resources.gpus=0"),
    )
    (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    (worker,) = group["template"]["spec"]["containers"]
    assert [one["name"] for one in worker["env"]] == ["HF_TOKEN"]
    assert "nvidia.com/gpu" not in worker["resources"]["limits"]
    assert yaml.safe_load(made["spec"]["runtimeEnvYAML"])["working_dir"] == "s3://bucket/mine.zip"
    assert said == ""


def test_a_cluster_that_is_there_is_chosen_by_its_name(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / "job.yaml"
    out = ("--out", str(file))
    assert main(["submit", "tiny.yaml", "--emit", "rayjob", "--cluster", "lab", *out]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert f"kubectl apply -f {file}" in told.err
    made = yaml.safe_load(file.read_text())
    check_fields(made)
    spec = made["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": "lab"}
    # KubeRay refuses a number of retries beside a selector.
    assert not {"backoffLimit", "rayClusterSpec", "shutdownAfterJobFinishes"} & set(spec)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which image do the pods run"),
        (("--image", "i", "--secret", "HF_TOKEN=/path"), "HF_TOKEN=SECRET/KEY"),
        (("--image", "i", "--secret", "HF=x/y"), "unknown secret 'HF'"),
        (("--cluster", "c", "--secret", "HF_TOKEN=x/y"), "has its own environment"),
        (("--image", "i", "--env", "MY_TOKEN=hidden-x"), "this is a secret"),
    ],
)
def test_what_cannot_be_written(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    del project
    assert main(["submit", "tiny.yaml", "--emit", "rayjob", *words]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "hidden-x" not in told.err


def test_names_are_such_as_kubernetes_takes() -> None:
    assert name_of("KL weight_2") == "carft-kl-weight-2"
    long = name_of("x" * 60 + "-")
    assert len(long) == LONGEST_NAME
    with pytest.raises(RequestError):
        reference("HF_TOKEN=Not a name/key")
