"""Which file a sweep's name on the command line stands for: the user's own, or a shipped recipe."""

from __future__ import annotations

import difflib
from pathlib import Path

from carft_core.errors import RequestError

FOLDER = Path(__file__).parent


def recipes() -> dict[str, Path]:
    """The sweep files that come with the package, by stem."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def locate(given: str | Path) -> Path:
    """The file that `given` names.

    An existing file is itself. Otherwise `NAME`, `NAME.yaml` and `sweeps/NAME.yaml` stand for the
    shipped recipe NAME. Raises RequestError with the nearest name when there is neither.
    """
    path = Path(given)
    try:
        found, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"there can be no sweep file {str(given)[:80]!r}: {error.args[-1]}"
        ) from None
    if is_file:
        return path
    recipe = recipes().get(path.stem)
    bare = path.parent == Path() and path.suffix in ("", ".yaml")
    if recipe and (bare or path == Path("sweeps", f"{path.stem}.yaml")):
        return recipe
    if found:
        return path
    raise RequestError(_missing(path))


def _missing(path: Path) -> str:
    beside = [
        str(item) for pattern in ("*.yaml", "*.yml") for item in sorted(path.parent.glob(pattern))
    ]
    known = [*beside, *recipes()]
    near = difflib.get_close_matches(str(path), known, n=1) or difflib.get_close_matches(
        path.stem, recipes(), n=1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"there is no sweep file {path}{hint} In {path.parent.absolute().name or '/'}/: "
        f"{', '.join(Path(name).name for name in beside[:10]) or 'no .yaml file'}. "
        f"Shipped recipes: {', '.join(recipes()) or 'none'}."
    )
