"""What goes into one request is as much as MLflow takes, in order."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric, RunTag
from mlflow.utils.validation import (
    MAX_BATCH_LOG_REQUEST_SIZE,
    MAX_METRICS_PER_BATCH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

from tracking.store.mlflow_store import METRICS, TAGS, batches


def test_the_numbers_are_mlflows() -> None:
    assert (METRICS, TAGS) == (MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH)


@given(st.lists(st.text(max_size=3).map(lambda text: text * 2000), max_size=40), st.integers(1, 9))
def test_nothing_is_lost_and_the_order_stays(texts: list[str], most: int) -> None:
    tags = [RunTag(str(number), text) for number, text in enumerate(texts)]
    made = list(batches(tags, most))
    assert [tag for batch in made for tag in batch] == tags
    assert all(0 < len(batch) <= most for batch in made)


def test_requests_of_the_longest_names_and_values_fit() -> None:
    metrics = [Metric("ü" * 250, 1 / 3, 1_790_000_000_000, step) for step in range(METRICS)]
    tags = [RunTag("ü" * 250, "ü" * 5000) for _ in range(TAGS)]
    for made in (list(batches(metrics, METRICS)), list(batches(tags, TAGS))):
        assert len(made) > 1
        for batch in made:
            request = json.dumps([dict(entry) for entry in batch], indent=2)
            assert len(request) < MAX_BATCH_LOG_REQUEST_SIZE
    short = [Metric("train/loss", 1 / 3, 1_790_000_000_000, step) for step in range(METRICS)]
    assert len(list(batches(short, METRICS))) == 1
