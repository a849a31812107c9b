"""A Ray of several nodes on this machine, in a process of its own that does what it is asked.

    python -m benchmarks.chaos.ray_nodes NODES

Prints the address, then answers each line, `kill` (one of the nodes, at random) or `add`, with a
line of its own. Ends with its standard input.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from typing import Any

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 * 2**20


def main(count: int) -> int:
    """Serve until the end of the input."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        os.environ["RAY_TMPDIR"] = folder  # another Ray of this machine is not to be found here
        return _serve(count)


def _serve(count: int) -> int:
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [_add(cluster) for _ in range(count)]
    _say(cluster.address)
    for line in sys.stdin:
        if line.strip() == "kill":
            _kill(cluster, nodes.pop(random.randrange(len(nodes))))
        else:
            nodes.append(_add(cluster))
        _say("done")
    cluster.shutdown()
    return 0


def _add(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False)


def _kill(cluster: Cluster, node: Any) -> None:
    """SIGKILL of all that Ray has started there, its actors first: as if the plug were pulled."""
    raylets = [info.process.pid for infos in node.all_processes.values() for info in infos]
    for pid in [*(child for raylet in raylets for child in _children(raylet)), *raylets]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    cluster.worker_nodes.discard(node)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:  # noqa: PTH123
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
