"""The demo models that ship with the package: a folder each, with the name of the ensemble that serves it."""

from __future__ import annotations

from pathlib import Path

FAMILIES = ("sdxl", "stable_cascade")
FOLDER = Path(__file__).parent


def demo_build(name: str = "sdxl") -> Path:
    """The folder of a shipped demo model.

    Raises:
        FileNotFoundError: this installation has none of that name.
    """
    build = FOLDER / name
    if not _ships(name):
        raise FileNotFoundError(
            f"no demo model {name!r} in {build}; reinstall triptych-demo, or give a folder that was exported"
        )
    return build


def demo_builds() -> list[Path]:
    """The folders of all shipped demo models, SDXL's first.

    Raises:
        FileNotFoundError: not even that one is there.
    """
    return [demo_build(), *(FOLDER / name for name in FAMILIES[1:] if _ships(name))]


def _ships(name: str) -> bool:
    return (FOLDER / name / "manifest.json").is_file()
