"""A Ray cluster of raylets on this machine, as a process: `python ray_nodes.py`.

It prints the address and the id of the head's node, then serves commands on stdin, a line each: `add` prints the id of
a new node, `kill` kills every node but the head's as a power cut does and prints `killed`. The end of stdin ends all.
"""

import sys
from contextlib import suppress
from typing import Any

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def serve() -> None:
    cluster, workers = Cluster(), []
    try:
        head = added(cluster)
        tell(f"{cluster.address} {head.node_id}")
        for line in sys.stdin:
            if line.strip() == "add":
                workers.append(added(cluster))
                tell(workers[-1].node_id)
            else:
                while workers:
                    cluster.remove_node(workers.pop(), allow_graceful=False)
                tell("killed")
    finally:
        cluster.shutdown()


def added(cluster: Cluster) -> Any:
    """A new node; on a busy machine the time limit of its start passes, and it is started again."""
    for _ in range(9):
        with suppress(Exception):
            return cluster.add_node(wait=False, **NODE)
    return cluster.add_node(wait=False, **NODE)


def tell(what: Any) -> None:
    # Ray prints too
    sys.__stderr__.write(f"answer: {what}\n")
    sys.__stderr__.flush()


if __name__ == "__main__":
    serve()
