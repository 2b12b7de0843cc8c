"""Lines of a recursion, and lines that agree up to their indices as one family with a range.

Lines are first written with marked indices: ⟦L5⟧ an index on the left side (of x), ⟦R5⟧ on the right (of x̄); ⟦l5⟧ and
⟦r5⟧ indices of sites. A line whose left-hand side has marked sites runs over those, any other over numbers in names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARK = re.compile(r"⟦([LRlr])(-?\d+)⟧")
_NAME, _SITE = re.compile(r"⟦[LR](-?\d+)⟧"), re.compile(r"⟦([lr])(-?\d+)⟧")


@dataclass(frozen=True)
class Line:
    """lhs = rhs, with marked indices, and how it is got."""

    lhs: str
    rhs: str
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Lines that agree up to their indices: a template with i (left) and j (right), and where they run."""

    lhs: str
    rhs: str
    note: str
    where: str


def families(lines: Sequence[Line]) -> list[Family]:
    """Lines gathered into families, in order of their first lines."""
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for line in lines:
        over_sites = bool(_SITE.search(line.lhs))
        lhs, rhs = (chosen(text, over_sites) for text in (line.lhs, line.rhs))
        base = base_of(lhs)
        key = (relative(lhs, base), relative(rhs, base), line.note)
        found.setdefault(key, []).append(base)
    result = []
    for (lhs, rhs, note), places in found.items():
        if len(places) < 3:
            for place in places:
                one = [_absolute(text, place) for text in (lhs, rhs)]
                result.append(Family(one[0], one[1], note, ""))
            continue
        written = [symbolic(text, letters(places)) for text in (lhs, rhs)]
        result.append(Family(written[0], written[1], note, ranges(places)))
    return result


def chosen(text: str, over_sites: bool) -> str:
    """The text with the marks that it runs over, as L and R: those of sites, the names' then plain, or all."""
    if over_sites:
        text = _NAME.sub(r"\1", text)
    return _SITE.sub(lambda m: f"⟦{m[1].upper()}{m[2]}⟧", text)


def term(text: str) -> str:
    """A term of a sum with the marks that it runs over: sites where its first factor has them."""
    return chosen(text, bool(_SITE.search(text.split(")")[0])) and not text.startswith("⟨"))


def base_of(lhs: str) -> tuple[int, int]:
    """The first index on each side of a line."""
    first = {"L": 0, "R": 0}
    for side, index in reversed(_MARK.findall(lhs)):
        first[side] = int(index)
    return first["L"], first["R"]


def relative(text: str, base: tuple[int, int]) -> str:
    return _MARK.sub(lambda m: f"⟦{m[1]}{int(m[2]) - base['LR'.index(m[1])]}⟧", text)


def _absolute(text: str, base: tuple[int, int]) -> str:
    return short(_MARK.sub(lambda m: str(int(m[2]) + base["LR".index(m[1])]), text))


def symbolic(text: str, names: tuple[str, str]) -> str:
    def one(m: re.Match[str]) -> str:
        offset, name = int(m[2]), names["LR".index(m[1])]
        return "{" + (name if offset == 0 else f"{name}{offset:+d}") + "}"

    return short(_MARK.sub(one, text))


def short(text: str) -> str:
    """C(g1, g1) is written C(g1)."""
    return re.sub(r"(C|M|DM?\d*(?:\[[^\]]*\])?)\(([^(),]+), \2\)", r"\1(\2)", text)


def letters(places: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Index names of the two sides: one letter where both indices always agree."""
    return ("i", "i") if all(a == b for a, b in places) else ("i", "j")


def ranges(places: Sequence[tuple[int, int]]) -> str:
    """Index ranges: rows with the same columns together."""
    if all(a == b for a, b in places):
        return f"i = {_runs(sorted({a for a, _ in places}))}"
    by_row: dict[int, list[int]] = {}
    for a, b in places:
        by_row.setdefault(a, []).append(b)
    rows: dict[tuple[int, ...], list[int]] = {}
    for a, columns in by_row.items():
        rows.setdefault(tuple(sorted(columns)), []).append(a)
    parts = []
    for columns, own in rows.items():
        first, second = _runs(sorted(own)), _runs(list(columns))
        parts.append(f"i, j = {first}" if first == second else f"i = {first}, j = {second}")
    return "; ".join(parts)


def _runs(values: Sequence[int]) -> str:
    """1, 2, 3, 5 as 1…3, 5."""
    parts, start = [], 0
    for k in range(1, len(values) + 1):
        if k == len(values) or values[k] != values[k - 1] + 1:
            first, last = values[start], values[k - 1]
            parts.append(str(first) if first == last else f"{first}…{last}")
            start = k
    return ", ".join(parts)
