"""`python -m carft_sweep` is `carft-sweep`."""

from __future__ import annotations

import sys

from carft_sweep.sweeps.cli import main

if __name__ == "__main__":
    sys.exit(main())
