"""Make the user of MLflow that sweeps run as, unless it is there: `python user.py NAME FILE`.

FILE holds the new user's password. MLFLOW_TRACKING_URI names the server, MLFLOW_TRACKING_USERNAME
and _PASSWORD its administrator.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient


def make(name: str, password: str) -> bool:
    """Whether the user was made now; one that is there keeps its password.

    Raises MlflowException when the server refuses or does not answer.
    """
    client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
    try:
        client.create_user(name, password)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


if __name__ == "__main__":
    user, secret = sys.argv[1], Path(sys.argv[2]).read_text().rstrip("\n")
    try:
        made = make(user, secret)
    except MlflowException as error:
        sys.exit(f"the user {user} cannot be made: {error}")
    sys.stdout.write(f"the user {user} {'was made' if made else 'is there'}\n")
