"""A local Triton, started from the nvidia-pytriton wheel, watched and restarted. Imports neither torch nor pytriton."""

from triptych.server.supervisor import Event, Server, State
from triptych.server.triton import Addresses, ServerError

__all__ = ["Addresses", "Event", "Server", "ServerError", "State"]
