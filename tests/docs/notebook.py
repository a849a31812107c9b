"""The example notebook of the docs, executed anew: `python -m tests.docs.notebook`.

It runs in a folder of its own, without the home and the tracking server of who executes it, and is
written back with its outputs.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "example.ipynb"
SECONDS = 900
"""For one cell, on a machine that has other things to do."""
_OURS = ("CARFT_", "MLFLOW_")
"""Variables by which another home or server would be used."""
_QUIET = "ignore:IProgress not found"
"""What tqdm says of a notebook without ipywidgets, with a path of this machine."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        executed = execute(read(), Path(folder))
    nbformat.write(executed, NOTEBOOK)


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The same with fresh outputs, executed in `folder`.

    Raises CellExecutionError for a cell that fails, CellTimeoutError for one that takes too long.
    """
    executed: NotebookNode = nbformat.from_dict(notebook)
    place = {"metadata": {"path": str(folder)}}
    options: dict[str, Any] = {"timeout": SECONDS, "kernel_name": "python3", "record_timing": False}
    client = NotebookClient(executed, resources=place, **options)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    environ |= {"IPYTHONDIR": str(folder / "ipython"), "PYTHONWARNINGS": _QUIET}
    client.execute(env=environ)
    # The version of who executes it is no change of the notebook.
    executed.metadata.language_info = {"name": "python"}
    return executed


if __name__ == "__main__":
    main()
