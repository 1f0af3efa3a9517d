"""What the scripts say: one line at a time on standard error, so that standard output stays free for results."""

from __future__ import annotations

import sys
import time


def say(message: str) -> None:
    """Write one time-stamped line (UTC) to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {message}\n")
    sys.stderr.flush()
