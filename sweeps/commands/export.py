"""`carft-sweep export SWEEP`: one model of a sweep as a folder that plain open_clip loads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.chosen import Chosen, choose_model
from sweeps.exporting import exporter
from sweeps.home import Home, find_home
from sweeps.places import written
from sweeps.progress import accuracies

if TYPE_CHECKING:
    from tracking.mlflow_model import KeptModel

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = Home(find_home(arguments.home).path.absolute())
    shown = Path(arguments.out or f"{arguments.sweep}-model")
    out, kept = shown.expanduser().absolute(), None
    with exporter(home, arguments.sweep) as models:
        chosen = choose_model(
            models.found,
            run=arguments.run,
            setting=arguments.setting,
            seed=arguments.seed,
            merge=arguments.merge,
        )
        with written("--out", out):
            models.write(chosen, out, force=arguments.force)
        if arguments.mlflow or arguments.register:
            kept = models.keep(chosen, out, register=arguments.register)
    if arguments.json:
        say(json.dumps(_plain(chosen, out, kept), indent=1, allow_nan=False))
        return 0
    for line in _lines(chosen, shown, kept):
        say(line)
    return 0


def _plain(chosen: Chosen, out: Path, kept: KeptModel | None) -> dict[str, Any]:
    registered = kept.registered if kept else None
    return {
        "folder": str(out),
        "setting": chosen.setting,
        "seed": chosen.run.seed,
        "why": chosen.why,
        "digest": chosen.run.digest,
        "label": chosen.label,
        "metrics": chosen.metrics,
        "model_id": kept.model_id if kept else None,
        "registered": dict(zip(("name", "version"), registered, strict=True))
        if registered
        else None,
    }


def _lines(chosen: Chosen, shown: Path, kept: KeptModel | None) -> Iterator[str]:
    seed = "" if chosen.run.seed is None else f", seed {chosen.run.seed}"
    why = f" ({chosen.why})" if chosen.why else ""
    yield f"{shown}: {chosen.setting}{seed}{why}"
    yield f"  {accuracies(chosen.metrics)}"
    yield f'  with open_clip: open_clip.create_model_and_transforms("local-dir:{shown}")'
    yield f"  on images: carft-sweep predict {shown} IMAGE"
    if kept is not None:
        yield f"MLflow: {kept.uri}" + ("" if kept.is_new else " (was there already)")
    if kept is not None and kept.registered is not None:
        yield "  registered as {} version {}".format(*kept.registered)
