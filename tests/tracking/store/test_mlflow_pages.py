"""The addresses of MLflow's pages, and the views that its own page opens."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from carft_sweep.tracking.store.base import RunsView
from carft_sweep.tracking.store.mlflow_pages import artifact_source, run_page, runs_page, saved_view

OOD, ID = "mean/ood/mean/top1", "mean/id/test/top1"
VIEW = RunsView(
    "kl_weight: arms",
    "arm",
    tags=["carft.seeds"],
    metrics=[OOD, ID],
    params=["algorithm.kl_weight"],
    sort_by=OOD,
    scatters=[(ID, OOD), ("algorithm.kl_weight", OOD)],
    lines=["train/loss"],
)


def state_of(text: str) -> Any:
    """Read a view as MLflow's page does."""
    state = json.loads(text)["state"]
    assert state.startswith("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))))


def test_addresses_name_the_pages_of_model_training() -> None:
    runs, training = "#/experiments/7/runs", "?workflowType=machine_learning"
    assert runs_page("7") == f"{runs}{training}"
    assert runs_page("7", "a b") == f"{runs}{training}&viewStateShareKey=a%20b"
    assert run_page("7", "r1") == f"{runs}/r1{training}"
    assert run_page("7", "r1", "a.html") == f"{runs}/r1/artifacts/a.html{training}"
    assert artifact_source("r1", "id_ood.png") == "get-artifact?run_uuid=r1&path=id_ood.png"


def test_a_view_has_its_filter_columns_and_order_and_its_charts_in_one_section() -> None:
    text = saved_view(VIEW, "tags.`carft.kind` = 'arm'", 5)
    own = {"name": VIEW.title, "createdAt": 5, "updatedAt": 5, "state": ""}
    assert {**json.loads(text), "state": ""} == own
    state = state_of(text)
    columns = ["tags.`carft.seeds`", *(f"metrics.`{name}`" for name in (OOD, ID))]
    columns.append("params.`algorithm.kl_weight`")
    assert state["searchFilter"] == "tags.`carft.kind` = 'arm'"
    assert (state["orderByKey"], state["orderByAsc"]) == (columns[1], False)
    assert state["selectedColumns"] == columns
    assert state["columnOrder"] == ["attributes.`Run Name`", *columns]
    (section,), charts = state["compareRunSections"], state["compareRunCharts"]
    assert section["name"] == VIEW.title
    assert {chart["metricSectionId"] for chart in charts} == {section["uuid"]}
    assert [chart["type"] for chart in charts] == ["SCATTER", "SCATTER", "LINE"]
    assert [chart["xaxis"]["type"] for chart in charts[:2]] == ["METRIC", "PARAM"]
    # One of many columns fits into a tag.
    names = [f"mean/ood/a shift with a long name {number}/top1" for number in range(100)]
    assert len(saved_view(RunsView("many", "arm", names, lines=names), "", 5)) < 5000
