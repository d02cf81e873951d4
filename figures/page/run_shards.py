"""The rows of a run measured by several processes: each leaves those of a few checkpoints in a file of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.files import read_json, write_json
from landscape.results import digest
from landscape.results.journal import Journal
from landscape.shards import Claims, Item

KEY = "landscape analyze of a run"
"""What the rows of a journal belong to."""


def share(
    blocks: Mapping[tuple[str, ...], Callable[[], list[dict[str, Any]]]], journal: Path, parts: Path, claims: Claims
) -> dict[str, Any]:
    """Compute the rows that nobody else has until all are in the journal; returns what it holds then.

    Args:
        blocks: names of rows that are computed together -> what computes them.
        journal: of all rows.
        parts: where each block has a file of its own until then.
        claims: of this process.
    """
    kept = Journal(journal, resume=True).stored(KEY) or {}
    whole = f"rows {digest.of_configuration(sorted(blocks))[:16]}"

    def item(names: tuple[str, ...], compute: Callable[[], list[dict[str, Any]]]) -> Item:
        part = parts / f"{digest.of_configuration(names)[:16]}.json"
        held = all(name in kept for name in names)

        def done() -> bool:
            return held or part.exists() or claims.has_ended(whole)

        return Item(part.stem, lambda: write_json(part, dict(zip(names, compute(), strict=True))), done)

    def merge() -> None:
        merged = Journal(journal, resume=True)
        merged.open(KEY)
        take_in(merged, parts)
        merged.close()

    for _ in claims.settle([item(*block) for block in blocks.items()]):
        pass
    claims.once(whole, merge)
    return Journal(journal, resume=True).stored(KEY) or {}


def take_in(kept: Journal, parts: Path) -> None:
    """The rows that processes have left in files of their own."""
    for part in sorted(parts.glob("*.json")):
        for name, row in read_json(part).items():
            kept.row(name, functools.partial(dict, row))
