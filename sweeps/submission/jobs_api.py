"""Ray's job API over HTTP, and one clear message for each way in which it does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import requests

from carft_core.errors import RequestError
from sweeps.submission.authentication import HOW, Authentication, token
from sweeps.submission.job import Job
from tracking.base import ServiceUnreachable
from tracking.where import without_password

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 600.0
_AWAY = (502, 503, 504)
_NO_DASHBOARD = (
    "is it the dashboard of a head that runs, with ray[default] installed, and reachable from "
    "here (ray start --head --dashboard-host=0.0.0.0)?"
)


class JobsApi:
    """The jobs of one cluster. Every method raises RequestError and ServiceUnreachable."""

    def __init__(self, address: str) -> None:
        self.shown = without_password(address)
        """The address as it may be shown."""
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "carft-sweep"
        self._session.auth = Authentication(address, token())

    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._field("ray_version", "GET", "/api/version"))

    def upload(self, uri: str, data: bytes) -> bool:
        """Make a package known; whether it had to be sent."""
        path = f"/api/packages/{uri.replace('://', '/')}"
        if self._ask("GET", path, missing=True).status_code == 200:
            return False
        self._ask("PUT", path, data=data, seconds=UPLOAD_SECONDS)
        return True

    def submit(self, request: Mapping[str, Any]) -> str:
        """Give a job; its id."""
        return str(self._field("submission_id", "POST", "/api/jobs/", json=dict(request)))

    def job(self, id_: str) -> Job:
        """What is known of a job. RequestError where the cluster knows none of this id."""
        return Job.read(self._json("GET", _path(id_), having="status"))

    def jobs(self) -> list[Job]:
        """Those that were submitted, the newest last."""
        told = self._json("GET", "/api/jobs/")
        found = [Job.read(one) for one in told if one.get("submission_id")]
        return sorted(found, key=lambda job: job.began or 0.0)

    def logs(self, id_: str) -> str:
        """All that the job's command has printed until now."""
        return str(self._field("logs", "GET", f"{_path(id_)}/logs") or "")

    def stop(self, id_: str) -> bool:
        """Ask a job to stop; whether it was running."""
        return bool(self._field("stopped", "POST", f"{_path(id_)}/stop"))

    def _field(self, name: str, method: str, path: str, **options: Any) -> Any:
        return self._json(method, path, having=name, **options)[name]

    def _json(self, method: str, path: str, *, having: str | None = None, **options: Any) -> Any:
        """A mapping with `having`; without it, a list."""
        answer = self._ask(method, path, **options)
        try:
            told = answer.json()
        except requests.JSONDecodeError:
            kind = answer.headers.get("Content-Type", "").partition(";")[0]
            if not (kind.startswith("text/") and answer.text):
                # Also one that ended in the midst of its headers: Python takes these for all.
                raise ServiceUnreachable(f"{self.shown} did not end its answer") from None
            raise RequestError(
                f"{self.shown} answers with {kind} and not with JSON: it is no dashboard of Ray, "
                "or a page for signing in stands before it"
            ) from None
        if not (isinstance(told, list) if having is None else _has(told, having)):
            raise RequestError(f"{self.shown} is no dashboard of Ray; {_NO_DASHBOARD}")
        return told

    def _ask(
        self,
        method: str,
        path: str,
        *,
        missing: bool = False,
        seconds: float = ANSWER_SECONDS,
        **options: Any,
    ) -> requests.Response:
        """With `missing` a 404 is an answer."""
        try:
            answer = self._session.request(
                method,
                self.shown + path,
                timeout=(CONNECT_SECONDS, seconds),
                allow_redirects=False,
                **options,
            )
        except requests.exceptions.SSLError as error:
            raise RequestError(
                f"{self.shown}: the certificate is not trusted ({_first(error)}); name your "
                "authority's in REQUESTS_CA_BUNDLE"
            ) from None
        except requests.exceptions.Timeout:
            late = f"{self.shown} gave no answer in time; {_NO_DASHBOARD}"
            raise ServiceUnreachable(late) from None
        except requests.exceptions.RequestException as error:
            raise ServiceUnreachable(
                f"nobody answers at {self.shown} ({_first(error)}); {_NO_DASHBOARD}"
            ) from None
        if not (answer.ok and not answer.is_redirect) and not (missing and _is_missing(answer)):
            raise self._refused(answer, path)
        return answer

    def _refused(self, answer: requests.Response, path: str) -> Exception:
        code = answer.status_code
        if code in (401, 403):
            what = "wants a token" if code == 401 else "does not take this token"
            return RequestError(f"{self.shown} {what} ({code}): {HOW}")
        if answer.is_redirect:
            to = without_password(answer.headers["Location"]).partition("?")[0]
            return RequestError(f"{self.shown} sends on to {to}: give the address that answers")
        if code == 413:
            return RequestError(
                f"{self.shown} does not take so large an archive (413): send less (--exclude), or "
                "let the proxy before it take more"
            )
        if code in _AWAY:
            return ServiceUnreachable(f"{self.shown} answers {code}: the head is away")
        text = answer.text.strip()
        if code == 404 and path.startswith("/api/jobs/") and "does not exist" in text:
            id_ = unquote(path.split("/")[3])
            return RequestError(
                f"no job {id_} on {self.shown} (carft-sweep submit --list); a head that was "
                "started anew has forgotten its jobs: submit again, the sweep goes on"
            )
        if code == 404:
            return RequestError(f"{self.shown} has no job API (404); {_NO_DASHBOARD}")
        last = text.splitlines()[-1][:300] if text else "no reason"
        kind = ServiceUnreachable if code >= 500 else RequestError
        return kind(f"{self.shown} answers {code}: {last}")


def _has(told: object, field: str) -> bool:
    return isinstance(told, dict) and field in told


def _path(id_: str) -> str:
    return f"/api/jobs/{quote(id_, safe='')}"


def _is_missing(answer: requests.Response) -> bool:
    return answer.status_code == 404 and "does not exist" in answer.text


def _first(error: Exception) -> str:
    """The inmost reason, which names no address."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", inner)
    while isinstance(reason, BaseException) and getattr(reason, "__cause__", None):
        reason = reason.__cause__
    words = getattr(reason, "strerror", None) or type(reason).__name__
    return str(words)
