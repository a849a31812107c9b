"""Ray's job client with time limits and clear errors, and following a job to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.ray_tokens import require_ray
from carft_sweep.tracking.errors import ServiceUnreachable
from carft_sweep.tracking.location import without_password

require_ray()  # says how to get it
import aiohttp  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # noqa: E402

# They report each upload on a terminal, where what is sent is listed already.
for _module in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_module}").setLevel(logging.WARNING)

JOBS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 600.0
PAUSE = 1.0
"""Seconds between two looks at whether a job has ended, once its log has."""
_HINT = (
    "is it the dashboard of a running head, with ray[default] installed, and reachable from here "
    "(ray start --head --dashboard-host=0.0.0.0)?"
)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_EXIT_CODES = (1, 2, 3, 4)


class JobClient(JobSubmissionClient):
    """Ray's job client with time limits. Every method raises RequestError where the cluster rejects
    the request, and ServiceUnreachable where it does not answer."""

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
        """Return whether the job API answers requests without token and password."""
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
        """Send a request with a time limit, which Ray's own client lacks."""
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
            raise self._unreachable(error) from None
        if answer.status_code >= 500:
            raise ServiceUnreachable(f"{self.shown} answers {_reason(answer)}")
        if not answer.ok and not (is_file and answer.status_code == 404):
            raise RequestError(f"{self.shown} answers {_reason(answer)}")
        return answer

    def follow(self, id_: str, emit: Callable[[str], None]) -> JobDetails:
        """Emit each line of a job's log until the job ends; return its final status."""
        try:
            streamed = asyncio.run(self._tail(id_, emit))
        except BrokenPipeError:  # of whoever reads what is emitted
            raise
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._unreachable(error) from None
        while not (job := self.get_job_info(id_)).status.is_terminal():
            time.sleep(PAUSE)
        # Ray may close the stream before the last lines are in it.
        for line in self.get_job_logs(id_)[streamed:].splitlines():
            emit(line)
        return job

    async def _tail(self, id_: str, emit: Callable[[str], None]) -> int:
        """Emit the whole lines of a job's log as they come; return how many characters they are."""
        rest, streamed = "", 0
        async for text in self.tail_job_logs(id_):
            *lines, rest = f"{rest}{text}".split("\n")
            for line in lines:
                emit(line)
                streamed += len(line) + 1
        return streamed

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(f"{self.shown} does not answer ({type(error).__name__}); {_HINT}")


def _address(option: str | None) -> str:
    return (option or os.environ.get(JOBS_VARIABLE, "")).rstrip("/")


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # brackets that do not match, which no scheme can mend
        return urlsplit("")


def unencrypted(option: str | None) -> str | None:
    """Return a warning if Ray's token or a password would go to `option` (`--address`, or its
    variable) unencrypted; else None."""
    parts = _parts(_address(option))
    has_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    is_local = parts.hostname in _LOCAL_HOSTS
    if parts.scheme != "http" or is_local or not (has_token or parts.password):
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


def exit_code(job: JobDetails) -> int:
    """Return the driver's own exit code; 3 for a stopped job, 1 for another failure."""
    if job.status == JobStatus.STOPPED:
        return 3
    if job.status == JobStatus.SUCCEEDED:
        return 0
    return job.driver_exit_code if job.driver_exit_code in _EXIT_CODES else 1
