"""Planting faults, to see that they are found: one report for every campaign."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def plant(names: Sequence[str], found: Callable[[str], tuple[int, str] | None], unit: str, most: int) -> int:
    """The exit status. `found` answers which `unit` shows a fault, and what the last one says; None: `most` do not
    find it."""
    missed = 0
    for name in names:
        seen = found(name)
        missed += seen is None
        print(f"{name}: " + ("NOT FOUND" if seen is None else "{} {}, {}".format(unit, *seen))[:200], flush=True)
    print(f"{len(names) - missed} of {len(names)} planted faults found, each before {unit} {most:,} is over")
    return 1 if missed else 0
