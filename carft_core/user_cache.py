"""Where the user's own cache lies: what is costly to learn of data, never kept beside them."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`CARFT_CACHE`, else `carft-sweep` in `XDG_CACHE_HOME`, else in `~/.cache`.

    It need not be there yet, and may be deleted at any time. Source: XDG Base Directory
    Specification, by which a relative path counts as none.
    """
    own = os.environ.get("CARFT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "carft-sweep"
