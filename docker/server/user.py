"""Make the user of MLflow that sweeps run as, unless it is there: `python user.py NAME FILE`.

FILE holds the new user's password. MLFLOW_TRACKING_URI names the server, MLFLOW_TRACKING_USERNAME
and _PASSWORD its administrator. Source: MLflow's REST API, users/create.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path


def make(name: str, password: str) -> bool:
    """Whether the user was made now; one that is there keeps its password.

    Raises HTTPError when the server refuses, another OSError when it does not answer.
    """
    admin = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
    request = urllib.request.Request(
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={
            "Authorization": f"Basic {base64.b64encode(admin.encode()).decode()}",
            "Content-Type": "application/json",
        },
    )
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" not in error.read():
            raise
        return False
    return True


if __name__ == "__main__":
    user, secret = sys.argv[1], Path(sys.argv[2]).read_text().rstrip("\n")
    try:
        made = make(user, secret)
    except OSError as error:
        sys.exit(f"the user {user} cannot be made: {error}")
    sys.stdout.write(f"the user {user} {'was made' if made else 'is there'}\n")
