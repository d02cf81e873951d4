"""The rows of a monitored run: in memory, and in files that survive a kill."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.files import atomic
from landscape.locks import Lock
from landscape.results import hdf5
from landscape.results.journal import Journal
from landscape.results.result import LabelledArrays

_KEY, _SETTINGS = "landscape monitor", "settings"
_HUNDREDTH = 100
"""The tables may lack one row in so many until they are closed: writing them takes the longer, the longer they are."""


class MeasuredRows:
    """One row a measured step, in the order of the steps.

    Files: `.journal` gets every row as it comes, with its checksum, and is what resuming reads; `.csv` and `.h5` are
    replaced as a whole after every row, from 200 rows on after every hundredth part.

    Args:
        stem: path of the files without their endings; None keeps the rows in memory alone.
        resume: go on with the rows that are there.

    Attributes:
        held: the rows.

    Raises:
        InputError: there are rows, and `resume` was not asked for.
    """

    def __init__(self, stem: Path | None, *, resume: bool) -> None:
        self.held: list[dict[str, Any]] = []
        self._stem, self._written = stem, 0
        self._lock: Lock | None = None
        path = self._path("journal")
        self._journal, self._resume = Journal(path, resume=resume), resume
        if not resume:
            self._stored()

    def open(self, first: int, settings: Mapping[str, Any]) -> None:
        """Begin the files, or take up the rows before the step `first`: training repeats the later ones.

        Raises:
            InputError: the rows there were measured in another way, the journal is damaged, another process writes it.
        """
        path = self._path("journal")
        if path is None:
            return
        self._lock = Lock(path, file=True)
        weakref.finalize(self, self._lock.release)
        try:
            self._take_up(first, dict(settings))
        except InputError:
            self._lock.release()
            raise

    def _take_up(self, first: int, settings: dict[str, Any]) -> None:
        stored = self._stored()
        steps = [name for name in stored if name != _SETTINGS]
        for name, value in settings.items() if steps else ():
            if stored[_SETTINGS].get(name) != value:
                raise InputError(
                    f"{self._path('journal')} holds rows of another {name}: resume with the same, or choose another out"
                )
        self._journal.open(_KEY)
        if not steps:  # a first measurement that failed leaves settings alone
            self._journal.drop([_SETTINGS])
        self._journal.row(_SETTINGS, lambda: settings)
        self._journal.drop([name for name in steps if int(name) >= first])
        self.held = [stored[name] for name in steps if int(name) < first]

    def _stored(self) -> dict[str, Any]:
        """What the journal holds.

        Raises:
            InputError: it is damaged, or no journal of a Monitor, or holds rows that are not to be resumed.
        """
        path = self._path("journal")
        if path is None or not path.exists():
            return {}
        stored = self._journal.stored(_KEY)
        if stored is None or (stored and _SETTINGS not in stored):
            raise InputError(f"{path} is damaged, or no journal of a Monitor: restore it, or choose another out")
        if len(stored) > 1 and not self._resume:
            raise InputError(f"{path} holds rows of an earlier run: go on with resume=True, or choose another out")
        return stored

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; it is on disk when this returns."""
        self.held.append(row)
        self._journal.row(str(row["step"]), lambda: row)

    @property
    def unwritten(self) -> bool:
        """Whether the tables lack so many rows that they should be written."""
        return self._stem is not None and len(self.held) - self._written >= max(1, self._written // _HUNDREDTH)

    def write(self, result: LabelledArrays) -> None:
        """Replace the tables, each as a whole."""
        table, file = self._path("csv"), self._path("h5")
        if table is None or file is None or not self.held:
            return
        with atomic(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(self.held[0])
            writer.writerows([repr(v) for v in row.values()] for row in self.held)
        hdf5.write(file, {"": hdf5.Group(), "result": hdf5.group_of(result)})
        self._written = len(self.held)

    def close(self) -> None:
        """Let go of the files; a journal without a row, as of a first measurement that failed, goes."""
        if self._journal.rows.keys() == {_SETTINGS}:
            self._journal.finish()
        self._journal.close()
        if self._lock is not None:
            self._lock.release()

    def _path(self, ending: str) -> Path | None:
        return None if self._stem is None else self._stem.with_name(f"{self._stem.name}.{ending}")


def as_arrays(rows: list[dict[str, Any]], units: Mapping[str, str], **facts: Any) -> LabelledArrays:
    """Rows as arrays over the axis `step`."""
    made = LabelledArrays(**facts)
    made.axis("step", [row["step"] for row in rows])
    for name in rows[0] if rows else ():
        if name != "step":
            made.add(name, ("step",), np.array([row[name] for row in rows], dtype=float), units.get(name, ""))
    return made
