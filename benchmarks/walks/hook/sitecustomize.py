"""Python runs this file at its start: so the driver and its worker processes are both recorded."""

import os

if os.environ.get("CARFT_WALK"):
    from benchmarks.walks.recorder import install

    install()
