"""A Ray cluster of three nodes on this machine, and the demo on it."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from triptych_cluster import app
from triptych_cluster.app import Options

# Ray gives up on its own parts after five seconds, which a busy machine's processes need to start.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"

# What each node has room for, and by what a test can tell the head from the others.
HEAD = {"num_cpus": 1, "resources": {"gate": 1}, "include_dashboard": False}
NODE = {"num_cpus": 1, "resources": {"door": 1}}


@contextmanager
def nodes(number):
    """A Ray cluster with room for one server a node, the first of which nobody takes away."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        for _ in range(number - 1):
            cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster():
    with nodes(3) as cluster:
        yield cluster


def free_port():
    """A port that nobody has: Ray Serve's proxies, one a node, take one port together."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def deployed(cluster, **options):
    """The demo on a cluster; doors take free ports, since all nodes are one machine here."""
    app.start(Options(**{"address": cluster.address, "port": 0, "metrics_port": 0, **options}))
    try:
        yield app.status
    finally:
        app.stop()
