"""The library that draws charts in a browser, as one script that lies in the page itself."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path


def library(cache: Path | None = None) -> str:
    """Vega, Vega-Lite and Vega-Embed as JavaScript; `window.vegaEmbed` is what it defines.

    To bundle it takes seconds, so it is kept in the folder `cache`, by the versions in it.
    """
    import vl_convert

    if cache is None:
        return _bundle()
    versions = (
        version("vl-convert-python"),
        vl_convert.get_vega_version(),
        vl_convert.get_vegalite_versions()[-1],
        vl_convert.get_vega_embed_version(),
    )
    file = cache / "page" / f"vega-{'-'.join(versions)}.js"
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        text = _bundle()
    with suppress(OSError):  # of a home that may only be read it is made each time
        _keep(text, file)
    return text


def _keep(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as written:
        written.write(text)
    Path(name).replace(file)  # another process may do the same: whoever is last, it is whole


def _bundle() -> str:
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # In a page a carriage return would be read as a line feed, and its digest be another one.
    return text.replace("\r\n", "\n").replace("\r", "\n")
