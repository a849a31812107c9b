"""The commands that use a trained model: export, predict."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import FAILED, Emit
from carft_sweep.sweeps.cli.compare import written
from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.ledger import sweep_folder
from carft_sweep.sweeps.results.export import (
    SelectedModel,
    baseline_command,
    exporter,
    select_model,
)
from carft_sweep.sweeps.scheduler.progress import figures
from carft_sweep.tracking.program import program

if TYPE_CHECKING:
    from carft_sweep.carft_core.export.predictor import Guess, Prediction
    from carft_sweep.tracking.store.mlflow_models import KeptModel


DETAILED = 5
"""The most images that are shown with several classes and contexts; of more each has a line, unless
a number of classes or contexts is given."""


def export_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `export` command."""
    home = find_home(arguments.home, trust=arguments.trust_home).absolute()
    folder = Path(arguments.out or f"{arguments.sweep}-model")
    out, logged = folder.expanduser().absolute(), None
    with exporter(home, arguments.sweep) as models:
        model = select_model(
            models.comparison,
            run=arguments.run,
            setting=arguments.setting,
            seed=arguments.seed,
            merge=arguments.merge,
        )
        with written("--out", out):
            models.write(model, out, force=arguments.force)
        if arguments.mlflow:
            logged = models.keep(model, out)
    if arguments.json:
        plain = {
            "folder": str(out),
            "setting": model.setting,
            "seed": model.run.seed,
            "why": model.why,
            "digest": model.run.digest,
            "label": model.label,
            "metrics": model.metrics,
            "model_id": logged.model_id if logged else None,
        }
        emit(json.dumps(plain, indent=1, allow_nan=False))
        return
    emit("\n".join(_export_lines(model, folder, logged)))
    if arguments.run is None and arguments.setting is None:
        for better in baseline_command(models.comparison, arguments.sweep):
            emit(f"The verdict is against it; for {better.model}: {better.command}")


def _export_lines(model: SelectedModel, folder: Path, logged: KeptModel | None) -> Iterator[str]:
    yield f"{folder}: {model}"
    yield f"  {figures(model.metrics)}"
    yield f'  with open_clip: open_clip.create_model_and_transforms("local-dir:{folder}")'
    yield f"  on images: {program()} predict {shlex.quote(str(folder))} IMAGE"
    if logged is not None:
        yield f"MLflow: {logged.uri}" + ("" if logged.is_new else " (was there already)")


def predict_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `predict` command; return 1 when no image could be read."""
    from carft_sweep.carft_core.export.predictor import Predictor

    images = list(_images([Path(text).expanduser() for text in arguments.images]))
    model = Predictor.load(_folder(arguments), _device(arguments.device))
    width = max(len(str(image)) for image in images)
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    asked = {name: getattr(arguments, name) for name in ("top", "contexts")}
    counts = {name: count for name, count in asked.items() if count is not None}
    is_detailed = len(images) <= DETAILED or bool(counts)
    outcomes = model.attempt(images, **counts)
    for image, prediction in zip(images, outcomes, strict=True):
        if isinstance(prediction, RequestError):
            reason = str(prediction)
            if not image.exists():
                reason = f"{image} cannot be read: there is no such file"
            unreadable.append({"image": str(image), "reason": reason})
            continue
        predictions.append({"image": str(image), **_prediction_as_dict(prediction)})
        if arguments.json:
            continue
        if is_detailed:
            emit("\n".join(_prediction_lines(image, prediction)))
        else:
            name, probability = prediction.classes[0]
            emit(f"{image!s:{width}}  {100 * probability:5.1f} %  {name}")
    if arguments.json:
        emit(json.dumps({"predictions": predictions, "unreadable": unreadable}, indent=1))
    elif unreadable:
        emit(f"{len(unreadable)} of {len(images)} could not be read:")
        for item in unreadable:
            emit(f"  {item['reason']}")
    return 0 if predictions else FAILED


def _folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the exported model in `arguments.model`; if it is a sweep's name, of an
    export of the sweep's selected model in the user's cache."""
    from carft_sweep.carft_core.export.export import FACTS
    from carft_sweep.sweeps.results.export import selected_in_cache

    folder = Path(arguments.model).expanduser()
    if (folder / FACTS).is_file():
        return folder
    home = find_home(arguments.home, trust=arguments.trust_home).absolute()
    try:
        sweep_folder(home, arguments.model)
    except RequestError as error:
        if folder.is_dir():
            raise RequestError(f"{folder} holds no exported model: there is no {FACTS}") from None
        exports = [path.parent.name for path in folder.parent.glob(f"*/{FACTS}")]
        near = difflib.get_close_matches(folder.name, exports, n=1)
        hint = f"did you mean {str(folder.with_name(near[0]))!r}?" if near else f"and {error}"
        raise RequestError(
            f"{arguments.model} is no folder that `{program()} export` made; {hint}"
        ) from None
    return selected_in_cache(home, arguments.model)


def _device(text: str) -> str:
    from carft_sweep.carft_core.config.trial import DEVICE

    if not re.fullmatch(DEVICE, text):
        raise RequestError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {text!r}")
    return text


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files, and the images below the folders, of `paths`."""
    from carft_sweep.carft_core.data.listing import EXTENSIONS

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        files = (file for file in path.rglob("*") if file.is_file())
        below = sorted(file for file in files if file.suffix.lower() in EXTENSIONS)
        if not below:
            raise RequestError(f"there is no image in {path} ({', '.join(EXTENSIONS)})")
        yield from below


def _prediction_as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "classes": [{"class": name, "probability": p} for name, p in prediction.classes],
        "contexts": [{"context": name, "probability": p} for name, p in prediction.contexts],
    }


def _prediction_lines(image: Path, prediction: Prediction) -> Iterator[str]:
    yield str(image)
    yield from _guesses(prediction.classes, indent=2)
    if prediction.contexts:
        yield "  seen as"
        shown = (
            guess._replace(name=guess.name.replace("{}", "…")) for guess in prediction.contexts
        )
        yield from _guesses([*shown], indent=4)


def _guesses(guesses: Sequence[Guess], *, indent: int) -> Iterator[str]:
    width = max(len(guess.name) for guess in guesses)
    for name, probability in guesses:
        yield f"{' ' * indent}{name:{width}}  {100 * probability:5.1f} %"
