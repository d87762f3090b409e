"""Small Ray clusters of this machine, whose nodes are processes, for the tests of the engine ray."""

import os
from contextlib import contextmanager

STORE = 80_000_000  # bytes of each node's object store
QUIET = {
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
    # as every other process: at Ray's 15, runs hardly get a core beside the other tests
    "RAY_worker_niceness": "0",
}


@contextmanager
def cluster(**head):
    """A head, without cores unless said otherwise, and a node with one core; without Ray's monitors, a process each."""
    os.environ |= QUIET
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 0, "object_store_memory": STORE}
    quiet = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    found = Cluster(initialize_head=True, head_node_args=options | quiet | head)
    try:
        add(found)
        yield found
    finally:
        found.shutdown()


def add(to, **options):
    """A node with one core."""
    return to.add_node(num_cpus=1, object_store_memory=STORE, include_log_monitor=False, **options)


@contextmanager
def connected(address):
    """Ray's module, connected to a cluster."""
    import ray

    ray.init(address=address, namespace="tests", log_to_driver=False, configure_logging=False)
    try:
        yield ray
    finally:
        ray.shutdown()


def full_object_stores(ray):
    """References to objects that fill most of the object store of every node with a core."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def large():
        return bytes(STORE - 10_000_000)

    task, found = ray.remote(large), []
    for node in ray.nodes():
        if node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found.append(task.options(num_cpus=0, scheduling_strategy=there).remote())
    ray.wait(found, num_returns=len(found), fetch_local=False)
    return found
