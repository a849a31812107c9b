"""The doctor's look at the job API of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.sweeps.engines import ray_tokens
from carft_sweep.sweeps.submit.client import JOBS_VARIABLE
from tests.services.answering import Answer, Asked, answering
from tests.sweeps.doctor.findings import look, only


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """A job API that answers what it is told, by path."""
    answers = {"/api/version": Answer({"ray_version": "2.60.0", "version": "4"})}

    def answer(asked: Asked) -> Answer:
        lets_in = "authorization" in map(str.lower, asked.headers) or asked.path != "/api/jobs/"
        return answers.get(asked.path, Answer([]) if lets_in else Answer("", 401))

    reset = ray_tokens._read_anew
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    reset()
    with answering(answer) as address:
        monkeypatch.setenv(JOBS_VARIABLE, f"{address}/")
        yield answers
    monkeypatch.delenv("RAY_AUTH_MODE")
    reset()


def test_the_job_api_is_asked_where_it_is_named(
    api: dict[str, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "answers, Ray 2.60.0" in only(look("ray.jobs", tmp_path), "ok")
    api["/api/jobs/"] = Answer([])
    answers, is_open = look("ray.jobs", tmp_path)
    assert (answers.level, is_open.level) == ("ok", "warning")
    assert "takes jobs from whoever reaches it" in is_open.message
    api["/api/version"] = Answer({"ray_version": "2.51.0", "version": "4"})
    assert "the cluster has Ray 2.51.0" in only(look("ray.jobs", tmp_path), "wrong")
    api["/api/version"] = Answer({"ray_version": "2.60.0", "version": "4"})
    api["/api/jobs/"] = Answer("Unauthorized", 401)
    assert "Authentication required" in only(look("ray.jobs", tmp_path), "wrong")
    api["/api/version"] = Answer("", 503)
    assert "answers 503" in only(look("ray.jobs", tmp_path), "unreachable")
    monkeypatch.setenv(JOBS_VARIABLE, "head:6379")
    assert "give --address http://HOST:8265" in only(look("ray.jobs", tmp_path), "wrong")
    monkeypatch.delenv(JOBS_VARIABLE)
    assert look("ray.jobs", tmp_path) == []
