"""Watch the memory of a server and its client while something runs."""

from __future__ import annotations

import threading

READ_S = 0.25  # seconds between two readings


class Peak:
    """Find the most bytes during a block: of this process's `children`, all together, and of its `own`.

    Pages that children share count once (PSS): Triton's stubs map the same libraries.
    """

    def __init__(self) -> None:
        self.children, self.own = 0.0, 0.0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self._read()

    def _watch(self) -> None:
        while not self._done.wait(READ_S):
            self._read()

    def _read(self) -> None:
        import psutil

        self.children = max(self.children, of_children())
        self.own = max(self.own, float(psutil.Process().memory_info().rss))


def of_children() -> float:
    """Sum up the bytes of all processes below this one, leaving out those that end meanwhile."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += float(child.memory_full_info().pss)
        except psutil.Error:
            continue
    return total
