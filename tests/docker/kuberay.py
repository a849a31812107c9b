"""Whether KubeRay and Kubernetes would take a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.30"
"""The oldest version that KubeRay's and Kubernetes' releases of today look after."""
_SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())


def check_fields(manifest: Mapping[str, Any]) -> None:
    """Raises jsonschema.ValidationError for a field of a RayCluster or RayJob that there is not."""
    jsonschema.Draft202012Validator(_SCHEMA).validate(manifest)


def check_pod(template: Mapping[str, Any]) -> None:
    """Raises kubernetes_validate's ValidationError for a template of pods that is wrong."""
    named = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
    kubernetes_validate.validate({**named, "template": template}, KUBERNETES, strict=True)
