"""Source and documents that are made from the contract: `python -m triptych_contract.generated` writes them anew.

The TypedDicts of the client are source because editors and type checkers read source; the tables are documents because people do.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .families import FAMILIES
from .family import Family
from .parameters import Parameter
from .settings import Settings, parameters

HINTS = Path("client/triptych/parameters.py")
PROTOCOL = Path("docs/protocol.md")
_HEAD = '''"""What may be asked for beside the prompt, for editors and type checkers. Made from the contract: edit that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from .pictures import Picture


'''


def shared() -> Mapping[str, Parameter]:
    """Give the parameters that requests of every family have."""
    return parameters(Settings)  # type: ignore[type-abstract] # nothing is made of it


def own(family: Family) -> Mapping[str, Parameter]:
    """Give the parameters that a family adds."""
    return {name: one for name, one in family.parameters.items() if name not in shared()}


def hints() -> str:
    """Write the client's TypedDicts: one for each family, and one of all parameters."""
    asked = {name: one for name, one in shared().items() if not one.required}
    classes = [_typed_dict("Shared", "", "What every family's requests have.", asked)]
    for family in FAMILIES.values():
        doc = f"The inputs of `{family.name}`. Each may be left out; None is the same."
        classes.append(_typed_dict(family.hints, "Shared, ", doc, own(family)))
    every: dict[str, Parameter] = {}
    for family in FAMILIES.values():
        every |= own(family)
    doc = "What the client's methods take; they refuse by name what their model does not have, before anything is sent."
    return _HEAD + "\n\n".join([*classes, _typed_dict("AnyParameters", "Shared, ", doc, every)])


def _typed_dict(name: str, bases: str, doc: str, members: Mapping[str, Parameter]) -> str:
    base = f"{bases or 'TypedDict, '}total=False"
    lines = [f"class {name}({base}):", f'    """{doc}"""', ""]
    for one in members.values():
        words = textwrap.wrap(one.told, 110)
        lines += [f"    {one.name}: {one.kind.python} | None", f'    """{words[0]}']
        lines += [f"    {line}" for line in words[1:]]
        lines[-1] += '"""'
    return "\n".join(lines) + "\n"


def table(members: Iterable[Parameter]) -> str:
    """Write a table of parameters for the document of the wire."""
    return "\n".join(["| input | type | what | legal | default |", "| --- | --- | --- | --- | --- |", *_rows(members)])


def _rows(members: Iterable[Parameter]) -> Iterator[str]:
    for one in members:
        count = {1: "", -1: " `[n]`"}.get(one.kind.count, f" `[{one.kind.count}]`")
        kind = f"{one.kind.datatype}{count}"
        legal = one.kind.legal + (f"; {one.note}" if one.note else "") + (f". Needs `{one.needs}`" if one.needs else "")
        yield f"| `{one.name}` | {kind} | {one.words.rstrip('.')} | {legal} | {one.told_default} |"


def tables(document: str) -> str:
    """Put the tables between their marks, `<!-- contract: NAME -->` … `<!-- end -->`."""
    made = {"shared": table(shared().values()), **{f.name: table(own(f).values()) for f in FAMILIES.values()}}
    mark = r"(<!-- contract: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(mark, lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", document, flags=re.DOTALL)


def main(root: Path = Path()) -> None:
    """Write everything below the project's folder."""
    (root / HINTS).write_text(hints(), encoding="utf-8")
    protocol = root / PROTOCOL
    protocol.write_text(tables(protocol.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
