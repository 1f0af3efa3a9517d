"""A local Triton, started from the nvidia-pytriton wheel, watched and restarted. Imports neither torch nor pytriton."""

from triptych_server.layout import Addresses, CannotServe
from triptych_server.supervisor import Event, Server, State

__all__ = ["Addresses", "CannotServe", "Event", "Server", "State"]
