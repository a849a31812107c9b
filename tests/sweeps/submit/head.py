"""A process with a Ray head of its own, with dashboard and job API, until its input ends.

Run as `python head.py FOLDER`. Prints one line of JSON, its address; Ray writes below FOLDER. It
asks for tokens where RAY_AUTH_MODE says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CORES = 2


def main(folder: Path) -> None:
    """Start, tell, wait, end."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    # Its address is written there too, which fails where no Ray has run since the machine started.
    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": CORES, "num_gpus": 0, "object_store_memory": 100 * 2**20},
            **{"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0},
            # Any that are free: the ranges by default would meet those of another head.
            **{"dashboard_agent_listen_port": 0, "min_worker_port": 0, "max_worker_port": 0},
            "temp_dir": str(folder),
        },
    )
    # As `ray start` does: else a job would be led to any Ray that runs on this machine.
    (folder / "ray_current_cluster").write_text(cluster.address)
    head: Any = cluster.head_node
    sys.stdout.write(json.dumps({"url": f"http://{head.webui_url}"}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
