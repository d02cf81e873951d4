"""What an analysis directory keeps of its results: analysis.h5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.results import hdf5
from landscape.results.result import Result, plain


class Store:
    """analysis.h5: results are written as soon as they are there and reused where nothing about them changed."""

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
        return self.known.get(name) if self.settings.get(name) == plain(settings) else None

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
