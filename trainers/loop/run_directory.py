"""A run's files: config.json, history.csv, ckpt.pt, average/ckpt.pt; right after a kill at any moment.

A row of the history is written before the checkpoint of its epoch and synced with it, so that the history is never
behind the checkpoint; on resuming, rows after the checkpoint's epoch (those epochs are trained again) are dropped.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape import checkpoint
from landscape.errors import InputError
from landscape.files import atomic, read_json, write_json
from landscape.results import digest
from trainers.loop.settings import ENDS

COLUMNS = (
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds"),
    *("forward_examples", "backward_examples"),
)

_HISTORY = "history_sha256"
"""Key of a checkpoint: SHA-256 of the history's rows up to its epoch; release 0.1.0 kept none."""

FREE = ("data_dir", "save_every", "keep_every")
"""Settings that a resumed run may change: they do not change what is computed."""


class RunDirectory:
    """The directory of one run.

    Nothing is written before `start`.

    Args:
        path: the directory; it may not exist yet.
        resume: go on with the run that is there.
        config: what identifies the run: method, its arguments, settings.
        writes: False on all processes but one.

    Raises:
        InputError: it holds a run and `resume` is not set, or holds another run, or cannot be written.
    """

    def __init__(self, path: str | Path, resume: bool, config: dict[str, Any], *, writes: bool = True) -> None:
        self.path, self.writes, self.config = Path(path), writes, config
        self.content: dict[str, Any] | None = None
        self._sha256 = ""
        existing = [n for n in ("ckpt.pt", "config.json", "history.csv") if (self.path / n).exists()]
        if existing and not resume:
            raise InputError(
                f"{self.path} already holds a run ({existing[0]}): go on with it by --resume, or choose another --out"
            )
        if resume and "config.json" in existing:
            _require_same(self.path, read_config(self.path), config)
        if resume and "ckpt.pt" in existing:
            self.content = checkpoint.read(self.path / "ckpt.pt")
            stored = {"method": {k: self.content["method"][k] for k in ("name", "arguments")}}
            stored["settings"] = self.content.get("settings", config["settings"])
            _require_configuration(self.path / "ckpt.pt", stored)
            _require_same(self.path, stored, config)

    def start(self) -> list[dict[str, Any]]:
        """Write config.json, cut the history back to the checkpoint; returns the rows that remain."""
        epoch = int(self.content["epoch"]) if self.content else 0
        rows = [row for row in read_history(self.path / "history.csv") if row["epoch"] <= epoch]
        if len(rows) < epoch:
            raise InputError(
                f"{self.path}/history.csv lacks rows that come before the checkpoint's epoch {epoch}: "
                "restore the file, or train again with another --out"
            )
        self._sha256 = functools.reduce(_chained, rows, "")
        if self.content and self.content.get(_HISTORY, self._sha256) != self._sha256:
            raise InputError(
                f"{self.path}/history.csv is damaged, or was changed since the checkpoint was saved: restore it, or "
                "train again with another --out"
            )
        if self.writes:
            for folder in (self.path, self.path / "average"):  # a kill in the middle of a save
                for leftover in (*folder.glob(".ckpt.pt.*"), *folder.glob(".epoch-*.pt.*")):
                    leftover.unlink()
            write_json(self.path / "config.json", self.config)
            self._rewrite(rows)
        return rows

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.path / "history.csv"
        if not rows:
            path.unlink(missing_ok=True)
            return
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: _text(v) for k, v in row.items()} for row in rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to history.csv; on disk at the latest when `save` returns.

        Raises:
            InputError: the disk is full, or the directory has become read-only.
        """
        self._sha256 = _chained(self._sha256, row)
        if not self.writes:
            return
        path = self.path / "history.csv"
        new = not path.exists()
        with _writable(path), open(path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(row))
            if new:
                writer.writeheader()
            writer.writerow({k: _text(v) for k, v in row.items()})

    def abandon(self) -> None:
        """Leave nothing behind of a run that has not finished an epoch."""
        if self.writes and not (self.path / "history.csv").exists() and not (self.path / "ckpt.pt").exists():
            (self.path / "config.json").unlink(missing_ok=True)

    def save(self, content: Mapping[str, Any], keep_as: str | None = None) -> None:
        """Replace ckpt.pt, whole at every moment; `keep_as` names a copy that later saves leave alone."""
        if not self.writes:
            return
        # Syncing every row would take a third of an epoch of a small network; rows behind the checkpoint are dropped
        # on resuming anyway.
        with _writable(self.path / "history.csv"), open(self.path / "history.csv", "rb") as stream:
            os.fsync(stream.fileno())
        checkpoint.write(self.path / "ckpt.pt", {**content, _HISTORY: self._sha256})
        if keep_as:
            with atomic(self.path / keep_as) as temporary:
                shutil.copyfile(self.path / "ckpt.pt", temporary)

    def save_average(self, content: Mapping[str, Any], keep_as: str | None = None) -> None:
        """Replace average/ckpt.pt, and `keep_as` beside it; before `save`, so that no finished run lacks it."""
        if not self.writes:
            return
        folder = self.path / "average"
        with _writable(folder):
            folder.mkdir(exist_ok=True)
        for name in ("ckpt.pt", *([keep_as] if keep_as else [])):
            checkpoint.write(folder / name, content)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free space and go on with --resume") from error


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run directory.

    Raises:
        InputError: it is missing or damaged.
    """
    config = read_json(path / "config.json")
    _require_configuration(path / "config.json", config)
    return config


def _require_configuration(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError where this does not say which method was run with which settings."""
    match config:
        case {"method": {"name": str(), "arguments": dict()}, "settings": dict()}:
            return
    raise InputError(f"{path} names no method, its arguments and settings: restore it, or choose another --out")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a history.csv, numbers as numbers; an incomplete last line is left out.

    Raises:
        InputError: it is damaged: no text, or a row without its epoch.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = [{k: _number(v) for k, v in row.items()} for row in read_rows(path) if None not in row]
    bad = [i for i, row in enumerate(rows, 1) if type(row.get("epoch")) is not int]
    if bad:
        raise InputError(f"{path} is damaged (row {bad[0]} has no epoch): restore it, or choose another --out")
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table in CSV as text; an incomplete last line is left out.

    Raises:
        InputError: it cannot be read, or is not such a table.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a regular file: a table in CSV is needed")
    try:
        text = path.read_text(encoding="utf-8")
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged (no table in CSV, or no UTF-8): restore it, or delete it") from error


def _require_same(path: Path, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    if stored["method"] != requested["method"]:
        raise InputError(
            f"{path} holds a run of {_call(stored['method'])}, this is {_call(requested['method'])}: "
            "choose another --out"
        )
    before, now = stored["settings"], requested["settings"]
    differing = [k for k in now if k not in FREE and k in before and before[k] != now[k]]
    if differing:
        name = differing[0]
        this = name
        if name in ENDS:  # another kind of end is named too
            name, this = (next((k for k in ENDS if s.get(k) is not None), name) for s in (before, now))
        new = str(now[this]) if this == name else f"{this.replace('_', '-')} {now[this]}"
        raise InputError(
            f"{path} was trained with {name.replace('_', '-')} {before[name]}, this is {new}: "
            "resume with the same settings, or choose another --out"
        )


def _call(method: Mapping[str, Any]) -> str:
    return f"{method['name']}({', '.join(f'{k}={v}' for k, v in method['arguments'].items())})"


def _chained(before: str, row: Mapping[str, Any]) -> str:
    """SHA-256 of a history whose last row is this one, but for the seconds, in which equal runs differ."""
    return digest.of_configuration([before, {k: _text(v) for k, v in row.items() if k != "seconds"}])


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _number(text: str | None) -> Any:
    for kind in (int, float):
        try:
            return kind(text)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return text
