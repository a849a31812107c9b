"""Every route of the MLflow that is installed, and which of them nobody needs for runs."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from carft_sweep.tracking.ui_app import open_routes

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_PARAMETER = re.compile(r"<[^>]*>|\{[^}]*\}")


class Route(NamedTuple):
    """A method, and a path with {} for each of its parameters."""

    method: str
    path: str


_CLOSED = {
    "assistant": "runs commands, reads and writes files",
    "gateway": "keeps keys, and sends requests to hosts that a request names",
    "gateway-proxy": "sends requests on",
    "jobs": "start processes",
    "prompt-optimization": "starts jobs",
    "genai": "starts jobs that evaluate",
    "issues": "start jobs that look for issues",
    "scorer": "runs a judge",
    "scorers": "keep code that evaluates",
    "webhooks": "send requests to hosts that a request names",
    "mcp-servers": "name programs and hosts that others are to use",
    "workspaces": "choose folders for artifacts",
    "traces": "have a tag that chooses the folder they are read from",
    "unified-traces": "likewise",
    "get-online-trace-details": "likewise",
    "get-trace-artifact": "reads that folder",
    "upload-artifact": "writes into the folder of a run, as the server",
    "runs/create-promptlab-run": "likewise",
    "artifacts/presigned-download-url": "signs with the server's keys for the store",
    "artifacts/presigned-upload-url": "likewise",
    "datasets": "of evaluations, which no sweep has",
    "label-schemas": "of traces",
    "review-queues": "of traces",
    "demo": "fills the database",
    "ui-telemetry": "asks a host of MLflow's",
}
_OTHERS = (
    *("/api/2.0/mlflow-artifacts/mpu/", "/ajax-api/2.0/mlflow-artifacts/mpu/"),  # signs, too
    *("/api/2.0/mlflow-artifacts/presigned/", "/ajax-api/2.0/mlflow-artifacts/presigned/"),
    "/v1/traces",  # keeps traces
    "/gateway/",  # sends requests to hosts that the gateway knows
    "/model-versions/get-artifact",  # reads any place in a cloud that a version names
    "/build/",  # static files once more
    "/api/2.0mlflow/",  # misspelt by MLflow
    "/ajax-api/2.0mlflow/",
)


def looked_at(route: Route) -> bool:
    """Whether it is open, or among those that were looked at and are to stay closed."""
    below_api = re.fullmatch(r"/(?:ajax-)?api/\d\.0/(?:mlflow/)?(.*)", route.path)
    if route in OPEN | MUTATIONS or route.path.startswith(_OTHERS):
        return True
    closed = tuple(f"{name}/" for name in _CLOSED)
    return below_api is not None and f"{below_api[1]}/".startswith(closed)


OPEN = frozenset(Route(method, _PARAMETER.sub("{}", path)) for method, path in open_routes())
MUTATIONS = frozenset(
    Route(name, "/graphql") for name in ("mlflowSearchDatasets", "mlflowSearchRuns", "testMutation")
)
"""What MLflow calls so, though it only reads."""

_LIST = """
import json
from fastapi.routing import iter_route_contexts
from mlflow.server import app as pages
from mlflow.server.auth import create_app
from mlflow.server.graphql.graphql_schema_extensions import schema

found = [
    (route.path, [*(getattr(route, "methods", None) or ["all"])])
    for route in iter_route_contexts(create_app(pages).routes)
    if route.path  # not `pages`, which follow
]
found += [(rule.rule, [*rule.methods]) for rule in pages.url_map.iter_rules()]
found += [("/graphql", [name]) for name in schema.graphql_schema.mutation_type.fields]
print(json.dumps(found))
"""


def mlflow_routes() -> frozenset[Route]:
    """Those of MLflow's own server with users; /graphql has what may change it as methods."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "basic_auth.ini")
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = sqlite:///{folder}/users.db\n"
        )
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": "of nobody's use",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "likewise",
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
            "_MLFLOW_SGI_NAME": "uvicorn",
        }
        command, environ = [sys.executable, "-W", "ignore", "-c", _LIST], {**os.environ, **own}
        listed = subprocess.check_output(command, env=environ, cwd=folder, timeout=100)
    paths = ((_PARAMETER.sub("{}", path), methods) for path, methods in json.loads(listed))
    routes = (Route(method, path) for path, methods in paths for method in methods)
    return frozenset(route for route in routes if route.method not in ("HEAD", "OPTIONS"))


def closed_paths(routes: Iterable[Route]) -> set[str]:
    """The paths of which no method is open."""
    return {route.path for route in routes} - {route.path for route in OPEN}


def answers(
    address: str, paths: Iterable[str], headers: Mapping[str, str] | None = None
) -> dict[Route, int]:
    """What a server answers at each path, whatever the method."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    statuses = {}
    try:
        for path in sorted(paths):
            for method in METHODS:
                connection.request(method, path.replace("{}", "x"), headers=dict(headers or {}))
                answer = connection.getresponse()
                answer.read()
                statuses[Route(method, path)] = answer.status
    finally:
        connection.close()
    return statuses
