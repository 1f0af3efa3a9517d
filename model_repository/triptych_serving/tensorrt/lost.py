"""End the process once CUDA no longer answers it, so that the supervisor starts a new one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .device import DeviceLost

EXIT_CODE = 70  # EX_SOFTWARE

log = logging.getLogger(__name__)


@contextmanager
def ends_the_process_if_lost() -> Iterator[None]:
    """End the process at once if the block raises DeviceLost; without finalizers, which would only call CUDA again."""
    try:
        yield
    except DeviceLost as error:
        log.critical("%s; this process ends, to be started anew", error)
        sys.stderr.write(f"{error}; this process ends, to be started anew\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
