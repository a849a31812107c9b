"""Whether the nodes of a cluster can serve: our packages, the shared home, the user's own files."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carft_core.errors import RequestError
from sweeps.imports import DECLARED
from sweeps.own_sources import source_digest
from sweeps.resources import Gpu, Node

ANSWER_SECONDS = 120.0
"""How long all nodes together may take to answer."""
_SEEN_SECONDS = 5.0
"""A network file system may show late what another host wrote."""

Answer = Mapping[str, Any]


def check_nodes(
    nodes: Mapping[str, Node],
    home: Path,
    *,
    imports: Sequence[str] = (),
    seen_as: Path | None = None,
) -> dict[str, Node]:
    """Ask each node (by Ray's id) whether it can serve; the nodes, with what they say of GPUs.

    The home is shared when each node reads what this process writes into it, and the other way
    round. `seen_as` is the path under which nodes look for it, the same when left out. Raises
    RequestError with the name of each node that cannot serve.
    """
    token = f".shared-{uuid.uuid4().hex}"
    files = [path for path in imports if path.endswith((".py", *DECLARED))]
    home.mkdir(parents=True, exist_ok=True)
    try:
        (home / token).write_text("the driver was here")
        asked = {
            node: _question(node).remote(
                str(seen_as or home), token, f"{token}-{node}", source_digest(), files
            )
            for node in nodes
        }
        answers = _answers(asked)
        for node, answer in answers.items():
            if "refused" not in answer and not _appears(home / f"{token}-{node}"):
                answers[node] = {"refused": _not_shared(home)}
    finally:
        for file in home.glob(f"{token}*"):
            file.unlink(missing_ok=True)
    refused = [f"  {nodes[n].name}: {a['refused']}" for n, a in answers.items() if "refused" in a]
    if refused:
        raise RequestError("\n".join(["not every node of the cluster can serve:", *refused]))
    return {
        id_: nodes[id_].with_gpus([Gpu(**gpu) for gpu in answer["gpus"]])
        for id_, answer in answers.items()
    }


def _question(node: str) -> Any:
    def look(home: str, token: str, own: str, digest: str, files: list[str]) -> Answer:
        # It travels whole, since it lies in a function: this package may not be there.
        try:
            from sweeps import own_sources
            from sweeps.engines import ray_nodes
            from sweeps.resources import visible_gpus
        except ImportError as error:
            return {"refused": f"carft-sweep is not installed there ({error})"}
        if own_sources.source_digest() != digest:
            return {"refused": f"has another version of carft-sweep, in {own_sources.ROOT}"}
        gpus = [vars(gpu) for gpu in visible_gpus({})]
        return ray_nodes.answer(home, token, own, files) | {"gpus": gpus}

    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=pinned)


def answer(home: str, token: str, own: str, files: Sequence[str]) -> dict[str, Any]:
    """What a node says: why it refuses, or nothing, having left its own token in the home."""
    if not _appears(Path(home) / token):
        return {"refused": _not_shared(home)}
    missing = [path for path in files if not Path(path).is_file()]
    if missing:
        return {"refused": f"does not see {missing[0]}, which the sweep imports"}
    (Path(home) / own).write_text("a node was here")
    return {}


def _answers(asked: Mapping[str, Any]) -> dict[str, Answer]:
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    answers: dict[str, Answer] = {}
    for node, future in asked.items():
        if future not in ready:
            answers[node] = {"refused": f"did not answer within {ANSWER_SECONDS:g} s"}
            continue
        try:
            answers[node] = ray.get(future)
        except (ray.exceptions.RayError, OSError) as error:
            answers[node] = {"refused": str(error).strip().splitlines()[-1]}
    return answers


def _appears(file: Path) -> bool:
    until = time.monotonic() + _SEEN_SECONDS
    while not file.is_file():
        if time.monotonic() > until or not file.parent.is_dir():
            return False
        time.sleep(0.2)
    return True


def _not_shared(home: str | Path) -> str:
    return f"does not share the home {home} with this machine: put it on shared storage (--home)"
