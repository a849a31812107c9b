"""The folder of an exported model as MLflow wants it: script, signature, example, requirements."""

from __future__ import annotations

import base64
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.quiet import quieted

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

SCRIPT = Path(__file__).with_name("served_model.py")
ARTIFACT = "model"
"""Under this name the script finds the export."""
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)
"""What the script and open_clip import."""
_QUIET = {
    # MLflow would copy the lock file of whatever project the user stands in into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def save(local: Path, folder: Path, model: LoggedModel) -> None:
    """Lay the export in `folder` out as MLflow's model at `local`, which is not there yet."""
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    save_model(
        local,
        python_model=str(SCRIPT),  # its text: nothing is pickled
        artifacts={ARTIFACT: str(folder)},
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=model.source_run_id,
            model_id=model.model_id,
        ),
        signature=_signature(),
        input_example=pd.DataFrame({"image": [_example()]}),
        pip_requirements=list(_requirements(folder)),
    )


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    def guesses(kind: str) -> Array:
        names = (Property(kind, DataType.string), Property("probability", DataType.double))
        return Array(Object(list(names)))

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(guesses("label"), "top"),
                ColSpec(guesses("context"), "contexts"),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("top", DataType.long, 5), ParamSpec("contexts", DataType.long, 5)]
        ),
    )


def _example() -> str:
    """A small image in base64: a gradient."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _requirements(folder: Path) -> Iterator[str]:
    """The versions here, as anybody can install them: without this machine's build of torch."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    names = [*REQUIREMENTS]
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        names.append("transformers")
    for name in names:
        try:
            yield f"{name}=={version(name).partition('+')[0]}"
        except PackageNotFoundError:
            yield name


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but what MLflow itself warns of, and nothing of the folder the user stands in."""
    with quieted("mlflow", logging.WARNING, _QUIET), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' and pydantic's, of how MLflow calls them
        yield
