"""`deploy.sh`: the calls of helm and kubectl in their order, by stand-ins that write them down."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clusters.conftest import SCRIPTS
from tests.e2e.conftest import ROOT
from tests.services.processes import ended

STAND_IN = """\
#!/usr/bin/env bash
line="$(basename "$0") $*"
echo "$line" >>"$CALLS"
if [ ! -t 0 ] && [[ $line == *--filename=-* ]]; then sed "s/^/  < /" >>"$CALLS"; fi
if [[ $line == *--dry-run=client* ]]; then echo "manifest of $3"; fi
[[ $line != *"$FAILS"* ]]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with stand-ins, manifests and secrets."""
    programs, manifests, secrets = (tmp_path / n for n in ("bin", "kuberay", "secrets"))
    for folder in (programs, manifests, secrets):
        folder.mkdir()
    for name in ("kubectl", "helm"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    (manifests / "kustomization.yaml").write_text("newName: registry.lab:5000/carft-sweep\n")
    (manifests / "settings.env").write_text("MLFLOW_TRACKING_URI=https://mlflow.lab\n")
    (secrets / "optuna_password").write_text("hidden")
    (secrets / "mlflow_user_password").write_text("hidden")
    return tmp_path


def deploy(place: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the script there."""
    known = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "CALLS": str(place / "calls")}
    known |= {"MANIFESTS": str(place / "kuberay"), "SECRETS": str(place / "secrets")}
    known |= {"FAILS": "nothing fails"}
    return ended(SCRIPTS / "deploy.sh", environ=known | environ, folder=place)


def calls(place: Path) -> list[str]:
    file = place / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_the_operator_comes_first_and_the_cluster_after_its_secrets(place: Path) -> None:
    done = deploy(place)
    assert done.returncode == 0, done.stderr
    called = [line for line in calls(place) if not line.startswith("  <")]
    wanted = [
        "helm upgrade --install kuberay-operator kuberay-operator --repo ",
        "kubectl create namespace carft --dry-run=client",
        "kubectl apply --filename=-",
        "kubectl create secret generic carft-secrets --namespace=carft ",
        "kubectl apply --server-side --filename=-",
        f"kubectl apply --namespace=carft --kustomize={place}/kuberay",
        "kubectl wait --namespace=carft --for=condition=HeadPodReady raycluster/carft ",
        "kubectl get pods --namespace=carft --selector=ray.io/cluster=carft",
    ]
    # Both ends of a pipe write when they begin, in either order.
    assert len(called) == len(wanted)
    starts = [[line.startswith(begin) for line in called] for begin in wanted]
    assert all(map(any, starts)), called
    places = [of_call.index(True) for of_call in starts]
    for earlier, later in ((0, 1), (1, 3), (2, 3), (3, 5), (4, 5), (5, 6), (6, 7)):
        assert places[earlier] < places[later], called
    assert "hidden" not in (place / "calls").read_text()
    # What one command writes the other applies.
    assert {"  < manifest of carft", "  < manifest of generic"} <= {*calls(place)}


def test_a_policy_that_would_keep_the_operator_out_is_said_and_one_that_is_there_left_alone(
    place: Path,
) -> None:
    policy = place / "kuberay" / "network-policy.yaml"
    policy.write_text((ROOT / "docker" / "kuberay" / policy.name).read_text())
    done = deploy(place, OPERATOR_NAMESPACE="operators")
    assert (done.returncode, calls(place)) == (2, [])
    assert "does not name the operator's namespace, operators" in done.stderr
    assert deploy(place, OPERATOR="no").returncode == 0
    assert not [line for line in calls(place) if line.startswith("helm")]


@pytest.mark.parametrize("fails", ["helm upgrade", "create secret", "apply --server-side"])
def test_a_call_that_fails_is_the_last(place: Path, fails: str) -> None:
    assert deploy(place, FAILS=fails).returncode != 0
    assert not [line for line in calls(place) if "--kustomize" in line]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("kuberay/settings.env", "URI=https://mlflow.example\n", "still names an example"),
        ("kuberay/kustomization.yaml", "newName: registry.example/c\n", "still names an example"),
        ("kuberay/settings.env", None, "has no settings.env"),
        ("secrets/optuna_password", "", "optuna_password is not there, or empty"),
        ("bin/helm", None, "helm is not here"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_called(
    place: Path, file: str, content: str | None, message: str
) -> None:
    if content is None:
        (place / file).unlink()
    else:
        (place / file).write_text(content)
    done = deploy(place)
    assert (done.returncode, calls(place)) == (2, [])
    assert message in done.stderr
