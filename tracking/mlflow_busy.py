"""How long a server of MLflow asks to be left alone: its `Retry-After` beside a 429 or 503."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

# What urllib3 says of an answer that MLflow's client would have asked for again.
_BUSY = re.compile(r"too many (429|503) ")
_HARMLESS = "/api/2.0/mlflow/experiments/get"


def is_busy(text: str) -> bool:
    """Whether an error of MLflow's client tells of such an answer. It keeps none of its headers."""
    return bool(_BUSY.search(text))


def asked_to_wait(uri: str) -> float | None:
    """Ask the server something small, and read from its answer how many seconds it wants.

    None when it does not say, or answers again.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer: Response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            _HARMLESS,
            "GET",
            params={"experiment_id": "0"},
            max_retries=0,
            raise_on_status=False,
        )
    except MlflowException:
        return None
    return said_in(answer)


def said_in(answer: Response | None) -> float | None:
    """The seconds that an answer asks for; None when it is not of that kind or does not say."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    if answer is None or answer.status_code not in Retry.RETRY_AFTER_STATUS_CODES:
        return None
    try:
        return Retry().parse_retry_after(answer.headers.get("Retry-After", ""))
    except InvalidHeader:
        return None
