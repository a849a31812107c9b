"""MLflow's server restricted to the routes that runs and models need.

MLflow's own server also has an assistant that runs commands, a gateway, jobs and webhooks: they
execute, fetch and write as the server's owner for whoever reaches it. A route that is not listed
here is closed, also one that a newer MLflow brings.

MLflow finds the applications by its entry points: `mlflow server --app-name carft`, or `carft-auth`
with MLflow's users. The image of MLflow's server has this package without its requirements, so
nothing else of the package is imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import compile_path

if TYPE_CHECKING:
    from flask import Flask
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PAGES = """
GET /
GET /health
GET /version
GET /static-files/{path:path}
GET /get-artifact
GET POST /graphql
GET /signup
"""

# Below /api for MLflow's client, and below /ajax-api for its pages.
_API = """
GET /3.0/mlflow/server-info
GET /2.0/mlflow/gateway-proxy
POST /3.0/mlflow/traces/search

POST /2.0/mlflow/experiments/create
POST /2.0/mlflow/experiments/delete
POST /2.0/mlflow/experiments/delete-experiment-tag
GET /2.0/mlflow/experiments/get
GET /2.0/mlflow/experiments/get-by-name
POST /2.0/mlflow/experiments/restore
GET POST /2.0/mlflow/experiments/search
POST /2.0/mlflow/experiments/search-datasets
POST /2.0/mlflow/experiments/set-experiment-tag
POST /2.0/mlflow/experiments/update

POST /2.0/mlflow/runs/create
POST /2.0/mlflow/runs/delete
POST /2.0/mlflow/runs/delete-tag
GET /2.0/mlflow/runs/get
POST /2.0/mlflow/runs/log-batch
POST /2.0/mlflow/runs/log-inputs
POST /2.0/mlflow/runs/log-metric
POST /2.0/mlflow/runs/log-model
POST /2.0/mlflow/runs/log-parameter
POST /2.0/mlflow/runs/outputs
POST /2.0/mlflow/runs/restore
POST /2.0/mlflow/runs/search
POST /2.0/mlflow/runs/set-tag
POST /2.0/mlflow/runs/update
GET /2.0/mlflow/metrics/get-history
GET /2.0/mlflow/metrics/get-history-bulk
GET /2.0/mlflow/metrics/get-history-bulk-interval

GET /2.0/mlflow/artifacts/list
GET /2.0/mlflow-artifacts/artifacts
DELETE GET PUT /2.0/mlflow-artifacts/artifacts/{path:path}

POST /2.0/mlflow/logged-models
POST /2.0/mlflow/logged-models/search
DELETE GET PATCH /2.0/mlflow/logged-models/{model}
GET /2.0/mlflow/logged-models/{model}/artifacts/directories
GET /2.0/mlflow/logged-models/{model}/artifacts/files
POST /2.0/mlflow/logged-models/{model}/params
PATCH /2.0/mlflow/logged-models/{model}/tags
DELETE /2.0/mlflow/logged-models/{model}/tags/{tag}

DELETE GET POST /2.0/mlflow/registered-models/alias
POST /2.0/mlflow/registered-models/create
DELETE /2.0/mlflow/registered-models/delete
DELETE /2.0/mlflow/registered-models/delete-tag
GET /2.0/mlflow/registered-models/get
GET POST /2.0/mlflow/registered-models/get-latest-versions
POST /2.0/mlflow/registered-models/rename
GET /2.0/mlflow/registered-models/search
POST /2.0/mlflow/registered-models/set-tag
PATCH /2.0/mlflow/registered-models/update
POST /2.0/mlflow/model-versions/create
DELETE /2.0/mlflow/model-versions/delete
DELETE /2.0/mlflow/model-versions/delete-tag
GET /2.0/mlflow/model-versions/get
GET /2.0/mlflow/model-versions/get-download-uri
GET /2.0/mlflow/model-versions/search
POST /2.0/mlflow/model-versions/set-tag
POST /2.0/mlflow/model-versions/transition-stage
PATCH /2.0/mlflow/model-versions/update
"""

# Only `carft-auth` has these and the page /signup.
_USERS = """
POST /2.0/mlflow/users/create
POST /2.0/mlflow/users/create-ui
GET /2.0/mlflow/users/current
DELETE /2.0/mlflow/users/delete
GET /2.0/mlflow/users/get
GET /2.0/mlflow/users/list
PATCH /2.0/mlflow/users/update-admin
PATCH /2.0/mlflow/users/update-password
GET /3.0/mlflow/users/current/permissions
GET /3.0/mlflow/users/permissions/get
POST /3.0/mlflow/users/permissions/grant
GET /3.0/mlflow/users/permissions/list
POST /3.0/mlflow/users/permissions/revoke
GET /3.0/mlflow/users/roles/list
POST /3.0/mlflow/roles/assign
POST /3.0/mlflow/roles/create
DELETE /3.0/mlflow/roles/delete
GET /3.0/mlflow/roles/get
GET /3.0/mlflow/roles/list
POST /3.0/mlflow/roles/permissions/add
GET /3.0/mlflow/roles/permissions/list
DELETE /3.0/mlflow/roles/permissions/remove
PATCH /3.0/mlflow/roles/permissions/update
DELETE /3.0/mlflow/roles/unassign
PATCH /3.0/mlflow/roles/update
GET /3.0/mlflow/roles/users/list
"""

# On pages opened at localhost MLflow shows its assistant, and marks each part of it.
_STYLE = "<style>[data-assistant-ui] {display: none !important}</style>"
# What MLflow's client and pages are told that this server can do. With multipart downloads they
# would read from the artifact store itself, and fail where only the server reaches that store.
_ABILITIES = {
    "store_type": "SqlStore",
    "workspaces_enabled": False,
    "trace_archival_enabled": False,
    "multipart_uploads_enabled": False,
    "multipart_downloads_enabled": False,
    "features_enabled": {"gateway": False},
}
_FOLDER = (
    "this server takes a name and tags of an experiment, and no artifact_location: "
    "it chooses where artifacts lie"
)


def open_routes() -> Iterator[tuple[str, str]]:
    """Yield the method and the path of each route that the server answers."""
    apis = ("/api", "/ajax-api")
    for table, bases in ((_PAGES, ("",)), (_API, apis), (_USERS, apis)):
        for line in filter(None, table.split("\n")):
            *methods, path = line.split()
            yield from ((method, f"{base}{path}") for base in bases for method in methods)


def create_app() -> ASGIApp:
    """Return the application of a server without passwords."""
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import app

    return _restrict(app, flask_app)


def create_auth_app() -> ASGIApp:
    """Return the application of a server with MLflow's users."""
    from mlflow.server import app as flask_app
    from mlflow.server.auth import create_app

    return _restrict(create_app(flask_app), flask_app)


def _restrict(app: ASGIApp, flask_app: Flask) -> ASGIApp:
    from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR

    index = Path(flask_app.static_folder or "", "index.html").read_text(encoding="utf-8")
    index = index.replace("</head>", f"{_STYLE}</head>")
    flask_app.view_functions["serve"] = lambda: index
    return OpenRoutes(
        app,
        prefix=os.environ.get(STATIC_PREFIX_ENV_VAR, ""),
        origins=os.environ.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "").split(","),
    )


class OpenRoutes:
    """ASGI application that passes requests for open routes on to MLflow and refuses all others."""

    def __init__(self, app: ASGIApp, prefix: str, origins: Sequence[str]) -> None:
        self._app = app
        self._prefix = prefix
        self._origins = origins
        self._routes = [(method, compile_path(path)[0]) for method, path in open_routes()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on to MLflow, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        answer: ASGIApp = self._app
        if scope["type"] == "http":
            request = Request(scope, receive)
            if not self._is_open(scope["method"], scope["path"]):
                answer = _refuse(404, "ENDPOINT_NOT_FOUND", "this server has no such route")
            elif self._is_foreign(request.headers):
                answer = _refuse(403, "PERMISSION_DENIED", "pages of this origin are not let in")
            elif scope["path"].endswith("/mlflow/server-info"):
                answer = JSONResponse(_ABILITIES)
            elif scope["path"].endswith("/mlflow/gateway-proxy"):
                # Nothing is sent on: a table of runs asks for this list, and shows an error else.
                answer = JSONResponse({"endpoints": []})
            elif scope["method"] == "POST" and scope["path"].endswith("/experiments/create"):
                body = await request.body()
                receive = _repeat(body, receive)
                if not _is_plain(body):
                    answer = _refuse(400, "INVALID_PARAMETER_VALUE", _FOLDER)
        await answer(scope, receive, send)

    def _is_open(self, method: str, path: str) -> bool:
        method = "GET" if method == "HEAD" else method
        path = path.removeprefix(self._prefix) or "/"
        return any(
            method in (allowed, "OPTIONS") and pattern.fullmatch(path)
            for allowed, pattern in self._routes
        )

    def _is_foreign(self, headers: Headers) -> bool:
        """Return whether a page of a foreign origin asks; MLflow admits all ports of localhost."""
        origin, host = headers.get("origin"), headers.get("host")
        return origin not in (None, f"http://{host}", f"https://{host}", *self._origins)


def _refuse(status: int, code: str, message: str) -> JSONResponse:
    """Return an error response in the form of MLflow's, so that its client shows the message."""
    return JSONResponse({"error_code": code, "message": message}, status)


def _is_plain(body: bytes) -> bool:
    """Return whether `body` creates an experiment with a name and tags alone. With an artifact
    location of the sender's choice the server would serve files of any folder."""
    try:
        fields = json.loads(body)  # as Flask does for MLflow
    except (ValueError, RecursionError):
        return False
    if not isinstance(fields, dict):
        return False
    return not any(value for name, value in fields.items() if name not in ("name", "tags"))


def _repeat(body: bytes, receive: Receive) -> Receive:
    """Return an ASGI receiver that gives the next reader the body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
