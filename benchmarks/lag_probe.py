"""How long a metric takes from when it is told to when the server's REST API shows it.

    python benchmarks/lag_probe.py ADDRESS METRIC RUN_ID...

Asks for the history of the metric of each run, ten times a second in all, until its standard
input ends; then prints the lags in seconds as JSON. A point carries the time at which it was told.
A run is asked for every so often, and its points are seen as much too late.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.parse
import urllib.request

PERIOD = 0.1


def history(address: str, run: str, metric: str) -> list[tuple[int, int]]:
    """Step and timestamp (ms) of each point that the server shows."""
    query = urllib.parse.urlencode({"run_id": run, "metric_key": metric})
    url = f"{address}/api/2.0/mlflow/metrics/get-history?{query}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        points = json.load(answer).get("metrics", [])
    return [(int(point.get("step", 0)), int(point["timestamp"])) for point in points]


def main(address: str, metric: str, runs: list[str]) -> None:
    """Look until the input ends, once more then, and tell."""
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    seen: dict[tuple[str, int], float] = {}
    last = False
    while not last:
        last = ended.is_set()
        for run in runs:
            points = history(address, run, metric)
            now = time.time()
            for step, told in points:
                seen.setdefault((run, step), now - told / 1000)
            ended.wait(PERIOD)
    json.dump(sorted(seen.values()), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
