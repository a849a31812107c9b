"""Ray's job API."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import requests
from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth

from carft_core.errors import RequestError
from sweeps.submit.package import STOP_SECONDS
from tracking.errors import ServiceUnreachable
from tracking.location import without_password

JOBS_VARIABLE = "RAY_API_SERVER_ADDRESS"
PORT = 8265
_OTHERS = {6379: "the port of Ray's own protocol", 10001: "the port of Ray Client"}
"""Ports of a head that are known and serve something else."""
_EXAMPLE = f"http://HOST:{PORT}"


def api_address(given: str | None, environ: Mapping[str, str] | None = None) -> str:
    """`given`, else RAY_API_SERVER_ADDRESS, without a slash at its end.

    Raises RequestError for what is no http(s) address, or one of another service of Ray's.
    """
    address = given or (os.environ if environ is None else environ).get(JOBS_VARIABLE, "")
    if not address:
        raise RequestError(
            f"where is the cluster? Give --address {_EXAMPLE}, or set {JOBS_VARIABLE}"
        )
    shown = without_password(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RequestError(f"{shown}: must be of the form {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not host:
        hint = _meant(address)
        known = address not in ("auto", "local")
        raise RequestError(
            f"{shown}: jobs are taken by Ray's dashboard, at an http(s) address"
            + (f"; did you mean {hint}?" if known else f" such as {_EXAMPLE}")
        )
    if port in _OTHERS:
        raise RequestError(
            f"{shown}: {port} is {_OTHERS[port]}; jobs are taken by its dashboard: "
            f"{parts.scheme}://{host}:{PORT}"
        )
    return address.rstrip("/")


def _meant(address: str) -> str:
    """The dashboard of the host that was named: at the port that was, unless that is another's."""
    parts = urlsplit(f"//{address.rpartition('//')[2]}")
    try:
        port = parts.port
    except ValueError:
        port = None
    return f"http://{parts.hostname}:{PORT if port is None or port in _OTHERS else port}"


DEFAULT = "~/.ray/auth_token"
HOW = f"set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN, or {DEFAULT})"
_PROXIED = "X-Ray-Authorization"


class Authentication(AuthBase):
    """Adds the token. Where a proxy takes the usual header, Ray reads another one."""

    def __init__(self, address: str, token: str | None) -> None:
        parts = urlsplit(address)
        self._token = token
        self._basic = (
            HTTPBasicAuth(unquote(parts.username), unquote(parts.password or ""))
            if parts.username
            else None
        )

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """See AuthBase."""
        if self._basic is not None:
            self._basic(r)
        if self._token is not None:
            header = "Authorization" if self._basic is None else _PROXIED
            r.headers[header] = f"Bearer {self._token}"
        return r


def token(environ: Mapping[str, str] | None = None) -> str | None:
    """The token that Ray itself would use, in its order; None where RAY_AUTH_MODE is not `token`.

    Raises RequestError where there is none, or its file cannot be read.
    """
    chosen = os.environ if environ is None else environ
    if chosen.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if given := chosen.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = Path(chosen.get("RAY_AUTH_TOKEN_PATH") or DEFAULT).expanduser()
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise RequestError(f"RAY_AUTH_MODE is token, but {path} cannot be read: {reason}") from None
    if not found:
        raise RequestError(f"RAY_AUTH_MODE is token, but {path} is empty")
    return found


Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
SWEEP, USER, COMMIT = "carft_sweep", "carft_user", "carft_commit"
"""Keys of a job's metadata."""
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_OURS = (1, 2, 3, 4)
_CAUSES = (
    (
        re.compile(r"No module named '?(sweeps|carft_core|tracking)\b"),
        "carft-sweep is not installed where the job ran: install it on every node, submit from a "
        "clone of it, or name it with --pip",
    ),
    (
        re.compile(r"exit code 127\b"),
        "the head has no such Python: name the one that its Ray runs with, "
        "--python /path/to/venv/bin/python",
    ),
    (
        re.compile(
            r"Failed to (setup|set up) runtime environment|Failed to install pip", re.IGNORECASE
        ),
        "the job's environment could not be made on the node: see its reason above",
    ),
    (
        re.compile(r"exit code -9\b|exit code 137\b"),
        "the driver was killed, maybe for memory; submit again, the sweep goes on",
    ),
)


@dataclass(frozen=True)
class Job:
    """One job. Times are Unix times in seconds."""

    id: str
    status: Status
    sweep: str | None
    user: str | None
    commit: str | None
    message: str
    driver_exit_code: int | None
    began: float | None
    ended: float | None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Job:
        """From the API's answer. What it tells of the environment is not taken."""
        metadata = told.get("metadata") or {}
        return cls(
            id=str(told.get("submission_id")),
            status=told["status"],
            sweep=metadata.get(SWEEP),
            user=metadata.get(USER),
            commit=metadata.get(COMMIT),
            message=told.get("message") or "",
            driver_exit_code=told.get("driver_exit_code"),
            began=_seconds(told.get("start_time")),
            ended=_seconds(told.get("end_time")),
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.status in _ENDED

    @property
    def exit_code(self) -> int | None:
        """The driver's own, where it ended by itself; 3 for a job that was stopped, 1 for one that
        failed in another way; None while it runs.
        """
        if not self.has_ended:
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 3
        return self.driver_exit_code if self.driver_exit_code in _OURS else 1

    def explained(self, log: str = "") -> str | None:
        """What a failure means that is none of the sweep's, and what to do; None where its own
        last lines tell it.
        """
        if self.status != "FAILED" or (self.driver_exit_code or 0) in _OURS[1:]:
            return None
        text = f"{self.message}\n{log[-20000:]}"
        return next((told for cause, told in _CAUSES if cause.search(text)), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


def stopping(id_: str) -> str:
    """What happens to a job that is asked to stop."""
    return (
        f"{id_} was asked to stop: its driver ends after the epoch, within {STOP_SECONDS} s or it "
        "is killed; submitted again, the sweep goes on"
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


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


PAUSE = 1.0
"""Seconds between two looks, at least."""
PATIENCE = 1800.0
"""Seconds without any answer after which nobody is waited for any more."""
_LONGEST = 30.0
_BYTES_A_SECOND = 200_000
"""The API gives a log whole each time: a long one is asked for less often."""
Line = Callable[[str], None]


@dataclass
class Follower:
    """Tells each line of a job's log once.

    `line` is given lines, `note` what becomes of the connection.
    """

    api: JobsApi
    line: Line
    note: Line
    told: int = field(default=0, init=False)
    """Characters of the log that were told."""
    log: str = field(default="", init=False)

    def follow(self, id_: str) -> Job:
        """Until the job ends. Raises ServiceUnreachable after PATIENCE without an answer, and
        RequestError where the cluster does not know the job.
        """
        pause, answered = PAUSE, time.monotonic()
        while True:
            try:
                job = self.api.job(id_)  # before its log: what it has written by its end is there
                self._tell(self.api.logs(id_), is_all=job.has_ended)
            except ServiceUnreachable as error:
                silent = time.monotonic() - answered
                if silent > PATIENCE:
                    raise
                if pause == PAUSE:
                    self.note(f"{error}; the job goes on, trying again")
                pause = min(2 * pause, _LONGEST)
            else:
                if pause > PAUSE:
                    self.note("connected again")
                pause, answered = PAUSE, time.monotonic()
                if job.has_ended:
                    return job
            time.sleep(max(pause, len(self.log) / _BYTES_A_SECOND))

    def _tell(self, log: str, *, is_all: bool) -> None:
        """What is new of the log, in whole lines; the last one may still grow."""
        if len(log) < self.told:
            # Its node has lost what there was.
            self.told = 0
        self.log = log
        end = len(log) if is_all else log.rfind("\n") + 1
        for text in log[self.told : end].splitlines():
            self.line(text)
        self.told = max(self.told, end)
