"""A Ray cluster of several nodes on this machine, until the standard input ends.

    python -m benchmarks.chaos.ray_nodes NODES

Prints its address.
"""

from __future__ import annotations

import os
import sys
import tempfile

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 * 2**20


def main(count: int) -> int:
    """Run a cluster with `count` nodes until the end of the input."""
    with tempfile.TemporaryDirectory(prefix="histories-") as folder:
        os.environ["RAY_TMPDIR"] = folder  # another Ray of this machine is not to be found here
        own = {"object_store_memory": OBJECT_STORE_BYTES}
        head = {"num_cpus": 0, "include_dashboard": False, **own}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(count):
            cluster.add_node(num_cpus=1, wait=False, **own)
        sys.stdout.write(f"{cluster.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
        cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
