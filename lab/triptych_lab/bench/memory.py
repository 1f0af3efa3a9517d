"""Memory of a server, and of its client, while something runs."""

from __future__ import annotations

import threading

READ_S = 0.25


class Peak:
    """The most bytes, while the block lasts, of this process's `children` and of its `own`.

    Shared pages of children are counted once (PSS): the stubs map the same libraries.
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
    """Bytes of all processes below this one, without what ended while being asked."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += float(child.memory_full_info().pss)
        except psutil.Error:
            continue
    return total
