"""The command that a job executes on the cluster: `run` of the same sweep, from the same folder."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from carft_core.errors import RequestError
from sweeps.submission.sensitive import word_has_password

PYTHON = "python"
_REPEATED = (("overrides", "--set"), ("profiles", "--profile"))
_ONCE = (("data_root", "--data-root"), ("parallel", "--parallel"), ("timeout", "--timeout"))
_FLAGS = (("fresh", "--fresh"), ("quiet", "--quiet"))


def options(arguments: argparse.Namespace) -> list[str]:
    """Those of `submit` that `run` has as well, then what stood behind `--`."""
    words: list[str] = []
    for name, option in _REPEATED:
        words += [word for value in getattr(arguments, name) for word in (option, value)]
    for name, option in _ONCE:
        value = getattr(arguments, name)
        words += [] if value is None else [option, value]
    words += [option for name, option in _FLAGS if getattr(arguments, name)]
    return words + list(arguments.more)


def entrypoint(
    file: Path | str,
    home: str,
    options: Sequence[str],
    *,
    root: Path | None = None,
    imports: Sequence[str] = (),
    python: str = PYTHON,
) -> str:
    """`cd sub && exec python -m sweeps run FILE --address auto --home HOME ...`, for a shell.

    `root` is the folder that is sent; None where nothing is. `imports` go with `--import`. Paths
    are relative to the current folder, there as here. Raises RequestError for a file outside of
    the root, and for a password among the options.
    """
    root = None if root is None else root.resolve()
    here = Path.cwd().resolve()
    start = here if root is not None and here.is_relative_to(root) else root
    shown = file if isinstance(file, str) else _there(file, root, start)
    words = [python, "-m", "sweeps", "run", shown, "--address", "auto", "--home", home]
    for item in imports:
        moved = _there(Path(item), root, start) if Path(item).is_absolute() else item
        words += ["--import", moved]
    words += options
    if any(map(word_has_password, words)):
        raise RequestError(
            "an option has an address with a password, and a job's command can be read by all who "
            "see the cluster: give it as a secret (--secret, or in the environment of the head)"
        )
    return "".join([*_step_into(root, start), f"exec {shlex.join(words)}"])


def _step_into(root: Path | None, start: Path | None) -> Iterator[str]:
    if root is not None and start is not None and start != root:
        folder = shlex.quote(start.relative_to(root).as_posix())
        yield f"mkdir -p {folder} && cd {folder} && "


def _there(path: Path, root: Path | None, start: Path | None) -> str:
    path = path.parent.resolve() / path.name
    if root is None or start is None or not path.is_relative_to(root):
        raise RequestError(f"{path} lies outside of what is sent ({root or 'nothing'})")
    return Path(os.path.relpath(path, start)).as_posix()
