"""`carft-sweep ui`: MLflow's server on this home, until Ctrl-C."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from carft_core.errors import RequestError
from sweeps.home import find_home
from tracking.ui import serve
from tracking.where import is_server, where

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    place = where(home.path)
    if not is_server(place.uri) and not home.path.exists():
        raise RequestError(f"there is no home {home.path} yet; run a sweep first, or name --home")
    server = serve(place.uri, place.artifacts, host=arguments.host, port=arguments.port)
    say(f"MLflow shows experiment {place.experiment} at {server.address}")
    if server.process is None:
        return 0
    say("Ctrl-C ends it.")
    try:
        server.wait()
    except KeyboardInterrupt:
        return 0
    return 0
