"""Mutate the examples of readers for a while: python -m tests.fuzz [SECONDS [TARGET…]]; every failure once, with its bytes."""

from __future__ import annotations

import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from .targets import TARGETS, mutated, tried


def fuzz(name: str, seconds: float, out: Path) -> str:
    """Try one target; failures go into the folder `out`."""
    ends, count, found = time.monotonic() + seconds, 0, {}
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < ends:
            data = mutated(random.Random(count), TARGETS[name])
            count += 1
            try:
                tried(TARGETS[name], data, Path(folder))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                found.setdefault((type(error).__name__, place.filename, place.lineno), (error, data))
    for number, (_, data) in enumerate(found.values()):
        (out / f"{name}-{number}").write_bytes(data)
    lines = [f"  {kind} at {file}:{line}: {str(error)[:200]}" for (kind, file, line), (error, _) in found.items()]
    return "\n".join([f"{name}: {count} tries, {len(found)} failures", *lines])


def main() -> None:
    warnings.simplefilter("ignore")  # Pillow's, of harmed EXIF
    seconds, names = float((*sys.argv[1:], "60")[0]), sys.argv[2:] or [*TARGETS]
    out = Path("out/fuzz")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        sys.stdout.write(fuzz(name, seconds, out) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
