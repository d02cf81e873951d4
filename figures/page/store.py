"""What an analysis directory keeps of its results: analysis.h5, and what several processes add to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.results import digest, hdf5
from landscape.results.result import Result, plain


class Store:
    """analysis.h5: results are written as soon as they are there and reused where nothing about them changed.

    Processes that share an analysis leave each result in a file of its own in analysis.parts/; `get` takes it in.
    """

    def __init__(self, path: Path, owners: dict[str, str]) -> None:
        self.path, self.owners = path, owners
        self.known: dict[str, Result] = {}
        self.settings: dict[str, Any] = {}
        if path.exists():
            held = hdf5.attributes(path).get("checkpoints", {})
            for label, sha in held.items():
                if owners.get(label) != sha:
                    raise InputError(
                        f"{path} holds results of another checkpoint ({label}, {sha[:12]}): choose another --out"
                    )
            self.settings = hdf5.attributes(path).get("settings", {})
            loaded = hdf5.load(path) if self.settings else {}
            self.known = loaded if isinstance(loaded, dict) else {}

    def get(self, name: str, settings: dict[str, Any]) -> Result | None:
        """The stored result called `name` if it was computed with exactly these settings."""
        if self.holds(name, settings):
            return self.known[name]
        part = self.part(name, settings)
        if not part.exists():
            return None
        result = hdf5.load_group(part, name)
        if result is not None:
            self.put(name, result, settings)
        return result

    def holds(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether the file itself had it when it was read."""
        return name in self.known and self.settings.get(name) == plain(settings)

    def part(self, name: str, settings: dict[str, Any]) -> Path:
        """Where a process that shares the analysis puts this result."""
        key = digest.of_configuration([name, plain(settings), self.owners])[:16]
        return self.path.with_suffix(".parts") / f"{key}.h5"

    def remove_parts(self) -> None:
        """Everything was taken in."""
        shutil.rmtree(self.path.with_suffix(".parts"), ignore_errors=True)

    def put(self, name: str, result: Result, settings: dict[str, Any]) -> None:
        """Keep a result; it is on disk when this returns."""
        self.known[name] = result
        self.settings[name] = plain(settings)
        self._write({name: result})

    def claim(self) -> None:
        """Say in the file whose results it holds, before anything else writes to it."""
        self._write({})

    def _write(self, new: dict[str, Result]) -> None:
        hdf5.save(self.path, new, {"checkpoints": self.owners, "settings": self.settings})
