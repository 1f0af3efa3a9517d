"""What this machine has for Triptych, what it lacks, and what to do about it."""

from triptych_lab.doctor.examination import Ports, examine
from triptych_lab.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "Ports", "examine"]
