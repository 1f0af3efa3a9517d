"""Other ways to serve the same weights, each behind one interface."""

from triptych_lab.bench.peers.peer import Peer
from triptych_lab.bench.peers.process import ProcessPeer, diffusers, optimum

__all__ = ["Peer", "ProcessPeer", "diffusers", "optimum"]
