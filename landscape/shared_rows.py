"""Rows of a journal computed by several processes: each leaves those of a few items in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from landscape.errors import InputError
from landscape.progress import Bar
from landscape.results import digest
from landscape.results.journal import Journal
from landscape.shards import Claims, Item

Blocks = Mapping[tuple[str, ...], Callable[[], list[Any]]]
"""Names of rows that are computed together -> what computes them."""


def opened(journal: Journal, key: str, blocks: Blocks, claims: Claims | None, bar: Bar) -> Journal:
    """The journal with the rows that are known: its file's; all, once they are computed, where processes share them.

    Args:
        journal: of all rows; shared, it is kept in memory alone from here on.
        key: what the rows belong to.
        blocks: every row.
        claims: of this process; None where it is alone.
        bar: of the rows.

    Returns:
        The journal. Rows that are missing though they were shared were removed by a process that ended with them.

    Raises:
        InputError: processes share a journal without a file; see `Journal.open`.
    """
    if claims is None:
        journal.open(key)
        return journal
    if journal.path is None:
        raise InputError("processes that share rows need a journal in a file")
    known, shared = Journal(), Journal(journal.path, resume=True)
    _complete(shared, key, blocks, claims, bar)
    known.rows = shared.stored(key) or {}
    return known


def _complete(journal: Journal, key: str, blocks: Blocks, claims: Claims, bar: Bar) -> None:
    """Compute the rows that nobody else has until all are in the file."""
    kept, parts = journal.stored(key) or {}, journal.parts
    assert parts is not None
    whole = f"rows {digest.of_configuration([key, *sorted(blocks)])[:16]}"

    def item(names: tuple[str, ...], compute: Callable[[], list[Any]]) -> Item:
        part = parts / f"{digest.of_configuration([key, *names])[:16]}.jsonl"
        held = all(name in kept for name in names)

        def run() -> None:
            rows = Journal(part)
            rows.rows = dict(zip(names, compute(), strict=True))
            rows.open(key)  # writes them as a whole
            rows.close()

        return Item(part.stem, run, lambda: held or part.exists() or claims.has_ended(whole))

    settled, sizes = 0, {item(*block): len(block[0]) for block in blocks.items()}
    for one in claims.settle(list(sizes)):
        settled += sizes[one]
        bar.advance(settled - bar.done)
    bar.done = 0
    claims.once(whole, lambda: _merge(journal, key))


def _merge(journal: Journal, key: str) -> None:
    """Take what processes have left into the file."""
    journal.open(key)
    journal.close()
