"""Print what extras of the project need, a requirement a line: a layer that only changes when `pyproject.toml` does.

Usage: requirements.py PYPROJECT [EXTRA…] [--without PACKAGE…]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomllib

NAME = re.compile(r"[\w.-]+")
OWN_EXTRA = re.compile(r"triptych\[([\w,-]+)\]")
OWN = "triptych-"  # the other distributions, which an image builds itself


def requirements(project: dict[str, Any], extras: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """The requirements of the project and of its `extras`, those of extras that they name included, from an index.

    Raises:
        KeyError: there is no such extra.
    """
    found = [*project["dependencies"]]
    for extra in extras:
        found += _of_extra(project["optional-dependencies"], extra)
    return [line for line in dict.fromkeys(found) if _name(line) not in without and not line.startswith(OWN)]


def _of_extra(extras: dict[str, list[str]], extra: str) -> Iterator[str]:
    for line in extras[extra]:
        if own := OWN_EXTRA.fullmatch(line):
            for other in own[1].split(","):
                yield from _of_extra(extras, other)
        else:
            yield line


def _name(requirement: str) -> str:
    found = NAME.match(requirement)
    return found[0] if found else requirement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--without", nargs="+", default=[])
    given = parser.parse_args()
    project = tomllib.loads(given.pyproject.read_text(encoding="utf-8"))["project"]
    try:
        lines = requirements(project, given.extras, given.without)
    except KeyError as missing:
        parser.error(f"{given.pyproject} has no extra {missing}")
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
