"""Memory of a server while something runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

READ_S = 0.25


def peak(work: Callable[[], float]) -> tuple[float, float]:
    """What `work` returns, and the most bytes that this process's children had meanwhile.

    Shared pages are counted once (PSS): the stubs map the same libraries.
    """
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(READ_S):
            most[0] = max(most[0], of_children())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        value = work()
    finally:
        done.set()
        watcher.join()
    return value, max(most[0], of_children())


def of_children() -> float:
    """Bytes of all processes below this one, without what ended while being asked."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += float(child.memory_full_info().pss)
        except psutil.Error:
            continue
    return total
