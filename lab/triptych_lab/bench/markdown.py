"""Write Markdown for the reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table; columns of numbers are aligned to the right."""
    lines = [[_cell(value) for value in row] for row in rows]
    right = [bool(lines) and all(_is_number(line[column]) for line in lines) for column in range(len(header))]
    rule = ["---:" if aligned else "---" for aligned in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(header), rule, *lines])


def _cell(value: object) -> str:
    """Write a cell: floats with three significant digits, bars escaped, since a bare one would end the cell."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _is_number(text: str) -> bool:
    return text.strip().lstrip("-").removesuffix("%")[:1].isdigit() or not text.strip()
