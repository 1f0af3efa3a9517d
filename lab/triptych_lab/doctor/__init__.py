"""Check what of Triptych works on this machine, and say what to do about the rest."""

from triptych_lab.doctor.examination import Ports, examine
from triptych_lab.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "Ports", "examine"]
