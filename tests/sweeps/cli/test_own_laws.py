"""`check` holds a user's own methods to the laws, and says in seconds which one is broken."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.carft_core.testing import check_own_methods
from tests.sweeps.conftest import Carft

METHOD = '''
from typing import ClassVar
from torch.nn import functional as F
from carft_sweep import ALGORITHMS, FineTune
from carft_sweep.carft_core.errors import RequestError

@ALGORITHMS.register
class Mine(FineTune):
    """Mine."""
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "Mine"
    path: str = ""

    def loss(self, model, batch, teacher):
        {loss}
'''
GOOD = "return super().loss(model, batch, teacher)"
SUM = "loss must be a mean over the batch: "


@pytest.fixture(autouse=True)
def forgetting(monkeypatch: pytest.MonkeyPatch, registries: None) -> Iterator[None]:
    del registries
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_laws", None)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (GOOD, None),
        ("return F.cross_entropy(model(batch.images), batch.labels, reduction='sum'), {}", SUM),
        ("return batch.cross_entropy(model(batch.pictures)), {}", "my_laws.py:15)"),
        ("return batch.cross_entropy(model(batch.images))", "must return (loss, dict of terms)"),
        (f"{GOOD}\n\n    def build(self, teacher):\n        raise RequestError('which?')", None),
    ],
    ids=["good", "sum", "exception", "return", "refused"],
)
def test_check_holds_own_methods_to_the_laws(
    loss: str, message: str | None, tmp_path: Path, carft: Carft
) -> None:
    file, sweep = tmp_path / "my_laws.py", tmp_path / "mine.yaml"
    file.write_text(METHOD.format(loss=loss))
    sweep.write_text(
        "import: [./my_laws.py]\n"
        "parameters: {algorithm.path: {values: [a, b]}}\n"
        "trial: {algorithm: {name: mine}, data: {family: icon_shift_dev}}\n"
    )
    code = 0 if message is None else 2
    printed = carft("check", sweep, "--home", tmp_path / "home", code=code).err
    if message is not None:
        assert f"algorithm mine, in {file}: " in printed
        assert message in printed
        assert "Traceback" not in printed


def test_a_method_for_another_tower_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_laws.py").write_text(
        METHOD.format(loss="return model.visual.transformer(batch.images), {}")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_laws")
    (warning,) = check_own_methods("ViT-B-32")
    assert "has no attribute 'transformer' (at " in warning
    assert warning.endswith("tried with the built-in CLIP, not with ViT-B-32")
