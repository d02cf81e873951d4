"""Analyses that lie on disk, read back: what `landscape analyze` wrote to any number of directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures.page.analysis import Analysis, read_history
from landscape.errors import InputError
from landscape.files import read_json
from landscape.results import hdf5
from landscape.results.cells import finite
from landscape.results.result import Result
from landscape.surfaces.result import Surface

SUMMARY, RESULTS = "summary.json", "analysis.h5"


def analyses(places: Sequence[Path]) -> list[Analysis]:
    """Every checkpoint that was analyzed in these directories or below them, under labels that tell them apart.

    Args:
        places: directories, or the summary.json in one.

    Raises:
        InputError: nothing was analyzed there, or the files do not belong together.
    """
    read = [entry for folder in _folders(places) for entry in _read(folder)]
    names = [a.label for a in read]
    return [
        a if names.count(a.label) == 1 else dataclasses.replace(a, label=label)
        for a, label in zip(read, _told_apart(read), strict=True)
    ]


def _folders(places: Sequence[Path]) -> list[Path]:
    folders: dict[Path, None] = {}
    for where in places:
        folder = where.parent if where.name == SUMMARY else where
        if not folder.is_dir():
            raise InputError(f"{where} is not a directory: give those that `landscape analyze` wrote")
        here = [folder] if (folder / RESULTS).exists() else sorted(p.parent for p in folder.rglob(RESULTS))
        here = [p for p in here if (p / SUMMARY).exists()]
        if not here:
            raise InputError(f"{where} holds no {SUMMARY} beside an {RESULTS}: run `landscape analyze CKPT` first")
        folders |= dict.fromkeys(p.resolve() for p in here)
    return list(folders)


def _read(folder: Path) -> Iterator[Analysis]:
    """The checkpoints of one directory, in the order of their columns."""
    summary = read_json(folder / SUMMARY)
    entries = summary.get("checkpoints")
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) and "label" in e for e in entries):
        raise InputError(f"{folder / SUMMARY} is not what `landscape analyze` writes: analyze the checkpoint again")
    path = folder / RESULTS
    owners = hdf5.attributes(path).get("checkpoints", {})
    loaded = hdf5.load(path)
    results = loaded if isinstance(loaded, dict) else {}
    for entry in entries:
        label = str(entry["label"])
        if owners.get(label) != entry.get("sha256"):
            raise InputError(f"{folder}: {SUMMARY} and {RESULTS} are of different checkpoints ({label}): analyze again")
        prefix = f"{label}/" if len(entries) > 1 else ""
        of_this = {k.removeprefix(prefix): r for k, r in results.items() if k.startswith(prefix)}
        yield _analysis(folder, entry, {k: r for k, r in of_this.items() if k in _keys(entry)})


def _keys(entry: Mapping[str, Any]) -> Iterable[str]:
    """What the last call of `analyze` asked for, in its order."""
    measures = entry.get("measures")
    return [*(measures if isinstance(measures, Mapping) else ()), "surface"]


def _analysis(folder: Path, entry: Mapping[str, Any], results: dict[str, Result]) -> Analysis:
    surface = results.pop("surface", None)
    checkpoint, provenance = str(entry.get("checkpoint", "")), _mapping(entry, "provenance")
    order = [k for k in _keys(entry) if k in results]
    return Analysis(
        label=str(entry["label"]),
        checkpoint=checkpoint,
        sha256=str(entry.get("sha256", "")),
        loss=_number(entry, "loss"),
        accuracy=_number(entry, "accuracy"),
        samples=int(entry.get("samples") or 0),
        classified=int(entry.get("classified", entry.get("samples")) or 0),
        parameters=int(entry.get("parameters") or 0),
        measures={k: results[k] for k in order},
        surface=surface if isinstance(surface, Surface) else None,
        history=_history(folder, checkpoint),
        metadata=_mapping(entry, "metadata"),
        provenance=provenance,
        command=str(provenance.get("command", "")),
    )


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = finite(entry.get(name))
    return float("nan") if value is None else value


def _mapping(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = entry.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def _history(folder: Path, checkpoint: str) -> list[dict[str, float]] | None:
    """The training's log beside the checkpoint, or above the directory of the analysis (a run that was moved)."""
    for where in (Path(checkpoint).parent, folder.parent):
        if checkpoint and (where / Path(checkpoint).name).exists():
            return read_history(where / "history.csv")
    return None


def _told_apart(read: Sequence[Analysis]) -> list[str]:
    """For each a label with as many folders of its checkpoint's path as tell it from those of the same name."""
    parts = [Path(a.checkpoint).resolve().parent.parts for a in read]
    labels = [a.label for a in read]
    for depth in range(2, max((len(p) for p in parts), default=0) + 1):
        counts = {label: labels.count(label) for label in labels}
        if max(counts.values(), default=1) == 1:
            break
        labels = [
            label if counts[label] == 1 else "/".join([*part[-depth:], *([] if _is_folder(a) else [a.label])])
            for label, part, a in zip(labels, parts, read, strict=True)
        ]
    numbers: dict[str, int] = {}
    unique = []
    for label in labels:
        numbers[label] = numbers.get(label, 0) + 1
        unique.append(label if labels.count(label) == 1 else f"{label}-{numbers[label]}")
    return unique


def _is_folder(a: Analysis) -> bool:
    return Path(a.checkpoint).name == "ckpt.pt"
