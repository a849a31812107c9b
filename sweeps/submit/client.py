"""Ray's job client with time-outs and clear errors, and following a job over lost connections."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.ray_tokens import require_ray
from carft_sweep.sweeps.submit.package import LOCAL_HOSTS
from carft_sweep.tracking.errors import ServiceUnreachable
from carft_sweep.tracking.location import without_password

require_ray()  # says how to get it
from ray.exceptions import RayError  # noqa: E402
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # noqa: E402

logger = logging.getLogger(__name__)
# It reports each upload on a terminal, where what is sent is listed already.
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)

JOBS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 600.0
PAUSE = 1.0
"""Seconds between two requests, at least."""
PATIENCE = 1800.0
"""Seconds without an answer after which following ends."""
_LONGEST_PAUSE = 30.0
_BYTES_PER_SECOND = 200_000
"""The API returns the whole log each time: a long one is requested less often."""
_HINT = (
    "is it the dashboard of a running head, with ray[default] installed, and reachable from here "
    "(ray start --head --dashboard-host=0.0.0.0)?"
)
_EXIT_CODES = (1, 2, 3, 4)


class JobClient(JobSubmissionClient):
    """Ray's job client with time-outs.

    Every method raises RequestError where the cluster rejects the request, and ServiceUnreachable
    where it does not answer.
    """

    def __init__(self, address: str | None) -> None:
        address = _address(address)
        if _parts(address).scheme not in ("http", "https"):
            raise RequestError(
                f"{address.rpartition('@')[2] or 'no address'}: jobs are sent to the dashboard of "
                f"the cluster's head; give --address http://HOST:8265, or set {JOBS_VARIABLE}"
            )
        self.shown = without_password(address)
        """The address without user and password."""
        os.environ[JOBS_VARIABLE] = address  # Ray prefers the variable to the argument
        try:
            super().__init__(address)
        except ServiceUnreachable:
            raise
        except (RayError, RuntimeError) as error:
            raise RequestError(f"{self.shown}: {error}") from None
        except (KeyError, TypeError):
            raise RequestError(f"{self.shown} is no dashboard of Ray; {_HINT}") from None

    def ray_version(self) -> str:
        """Return the version of the cluster's Ray."""
        return str(self._do_request("GET", "/api/version").json()["ray_version"])

    def is_open(self) -> bool:
        """Return whether the job API answers somebody without token and password."""
        try:
            answer = requests.get(
                f"{self.shown}/api/jobs/",
                auth=lambda request: request,  # else .netrc would be read
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                verify=self._verify,
            )
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        """Send one request: Ray's own client waits for an answer without a limit."""
        seconds = UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS
        try:
            answer: requests.Response = super()._do_request(
                method, endpoint, timeout=(CONNECT_SECONDS, seconds), **options
            )
            is_file = endpoint.startswith("/api/packages/")
            if answer.ok and not is_file:
                answer.json()
        except RayError as error:
            raise RequestError(f"{self.shown}: {error}") from None
        except requests.RequestException as error:
            what = type(error).__name__
            raise ServiceUnreachable(f"{self.shown} does not answer ({what}); {_HINT}") from None
        if answer.status_code >= 500:
            raise ServiceUnreachable(f"{self.shown} answers {_reason(answer)}")
        if not answer.ok and not (is_file and answer.status_code == 404):
            raise RequestError(f"{self.shown} answers {_reason(answer)}")
        return answer


def _address(option: str | None) -> str:
    return (option or os.environ.get(JOBS_VARIABLE, "")).rstrip("/")


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # brackets that do not match, which no scheme can mend
        return urlsplit("")


def unencrypted(option: str | None) -> str | None:
    """Return a warning where Ray's token or a password would go over HTTP to another machine."""
    parts = _parts(_address(option))
    has_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if parts.scheme != "http" or parts.hostname in LOCAL_HOSTS or not (has_token or parts.password):
        return None
    return (
        f"{'The token' if has_token else 'The password'} goes to {parts.hostname} over http:// and "
        "can be read on the way; whoever has it runs code on the cluster. Use https://, or a "
        f"tunnel: ssh -fN -L 8265:127.0.0.1:8265 {parts.hostname}, and --address "
        "http://127.0.0.1:8265"
    )


def _reason(answer: requests.Response) -> str:
    """Return the status code and the last line of a failed answer."""
    lines = answer.text.strip().splitlines()
    return f"{answer.status_code}: {lines[-1][:300] if lines else answer.reason}"


def exit_code(job: JobDetails) -> int | None:
    """Return the driver's own exit code; 3 for a stopped job, 1 for one that failed in another
    way, None while it runs.
    """
    if not job.status.is_terminal():
        return None
    if job.status == JobStatus.STOPPED:
        return 3
    if job.status == JobStatus.SUCCEEDED:
        return 0
    return job.driver_exit_code if job.driver_exit_code in _EXIT_CODES else 1


def follow(
    client: JobClient, id_: str, emit: Callable[[str], None], note: Callable[[str], None]
) -> JobDetails:
    """Emit each line of a job's log once, until the job ends; `note` gets lost connections.

    Raises ServiceUnreachable after PATIENCE without an answer, and RequestError where the cluster
    does not know the job.
    """
    log, emitted, pause, answered = "", 0, PAUSE, time.monotonic()
    while True:
        try:
            job = client.get_job_info(id_)  # before its log, which is whole once the job has ended
            log = client.get_job_logs(id_) or ""
        except ServiceUnreachable as error:
            logger.info("no answer for %.0f s: %s", time.monotonic() - answered, error)
            if time.monotonic() - answered > PATIENCE:
                raise
            if pause == PAUSE:
                note(f"{error}; the job continues, trying again")
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if pause > PAUSE:
                note("connected again")
            pause, answered = PAUSE, time.monotonic()
            is_last = job.status.is_terminal()
            if len(log) < emitted:  # its node has lost what there was
                emitted = 0
            end = len(log) if is_last else log.rfind("\n") + 1  # the last line may still grow
            for line in log[emitted:end].splitlines():
                emit(line)
            emitted = max(emitted, end)
            if is_last:
                return job
        time.sleep(max(pause, len(log) / _BYTES_PER_SECOND))
