"""One of every kind of file that is read, with a command line that reads it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from torture.commands import DATA, NETWORK, TRAIN
from torture.workshop import Workshop

_OUT = "--quiet --device cpu --out out"
_NORM = f"--measure gradient_norm --grid 0 --samples 100 {_OUT}"
_FOREIGN = f"--model {NETWORK} --data {DATA} {_NORM}"
_IMAGES = f"--data-dir data --model mlp:hidden=4 --epochs 1 --batch-size 10 {_OUT}"


@dataclass(frozen=True)
class Specimen:
    """A kind of file.

    Attributes:
        make: fills a folder, given the workshop.
        files: patterns of the files that may be damaged.
        line: behind `landscape`, run in that folder; it writes to `out`.
        unverified: the kind carries no checksum, as SECURITY.md says: other numbers need no line.
    """

    make: Callable[[Workshop, Path], None]
    files: tuple[str, ...]
    line: str
    unverified: bool = False


def _checkpoint(workshop: Workshop, folder: Path) -> None:
    shutil.copy(workshop.inputs / "first" / "ckpt.pt", folder)


def _state(workshop: Workshop) -> dict[str, torch.Tensor]:
    return torch.load(workshop.inputs / "first" / "ckpt.pt", weights_only=True)["model"]["state"]


def _foreign(workshop: Workshop, folder: Path) -> None:
    torch.save({"state_dict": _state(workshop), "epoch": 3}, folder / "theirs.pth")


def _legacy(workshop: Workshop, folder: Path) -> None:
    torch.save(_state(workshop), folder / "theirs.pth", _use_new_zipfile_serialization=False)


def _safetensors(workshop: Workshop, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_state(workshop), folder / "theirs.safetensors")


def _distributed(workshop: Workshop, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": _state(workshop)}, checkpoint_id=folder / "theirs", no_dist=True)


def _half(workshop: Workshop, folder: Path) -> None:
    """A training that was stopped after half of its epochs, with a row of the next one."""
    (folder / "out").mkdir()
    for name in ("config.json", "history.csv"):
        shutil.copy(workshop.inputs / "first" / name, folder / "out")
    shutil.copy(workshop.inputs / "first" / "epoch-4.pt", folder / "out" / "ckpt.pt")


def _copy(name: str) -> Callable[[Workshop, Path], None]:
    def make(workshop: Workshop, folder: Path) -> None:
        shutil.copytree(workshop.whole(name).folder / "out", folder / "out")

    return make


def _results(workshop: Workshop, folder: Path) -> None:
    shutil.copy(workshop.whole("analyze").folder / "out" / "analysis.h5", folder / "results.h5")


def _unsealed(workshop: Workshop, folder: Path) -> None:
    """As release 0.1.0 wrote it."""
    _results(workshop, folder)
    with h5py.File(folder / "results.h5", "r+") as file:
        del file.attrs["checksum"]


def _begun(name: str, journal: str, method: str, pieces: int) -> Callable[[Workshop, Path], None]:
    """A command that died after so many pieces of its journal."""

    def make(workshop: Workshop, folder: Path) -> None:
        from torture.process import run

        run(workshop.arguments(name), folder, before=lambda: _dying(journal, method, pieces))

    return make


def _dying(journal: str, method: str, pieces: int) -> None:
    import pkgutil

    kind, left = pkgutil.resolve_name(journal), [pieces]
    whole = getattr(kind, method)

    def dying(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os._exit(0)
        return whole(*arguments)

    setattr(kind, method, dying)


def _npz(save: Callable[..., None]) -> Callable[[Workshop, Path], None]:
    def make(workshop: Workshop, folder: Path) -> None:
        draw = np.random.default_rng(0)
        x, y = draw.normal(size=(120, 2)).astype(np.float32), draw.integers(0, 2, 120)
        save(folder / "data.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
        _checkpoint(workshop, folder)

    return make


def _idx(packed: bool) -> Callable[[Workshop, Path], None]:
    def make(workshop: Workshop, folder: Path) -> None:
        (folder / "data").mkdir()
        draw = np.random.default_rng(0)
        for part, count in (("train", 40), ("t10k", 10)):
            for name, shape in (("images-idx3-ubyte", (count, 28, 28)), ("labels-idx1-ubyte", (count,))):
                array = draw.integers(0, 256 if len(shape) == 3 else 10, shape).astype(np.uint8)
                content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *shape) + array.tobytes()
                path = folder / "data" / f"{part}-{name}{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(content) if packed else content)

    return make


def _cifar(workshop: Workshop, folder: Path) -> None:
    draw = np.random.default_rng(0)
    (folder / "data" / "cifar-10-batches-bin").mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = draw.integers(0, 256, (10, 3073)).astype(np.uint8)
        rows[:, 0] %= 10
        (folder / "data" / "cifar-10-batches-bin" / name).write_bytes(rows.tobytes())


def _pickled(workshop: Workshop, folder: Path) -> None:
    import pickle

    draw = np.random.default_rng(0)
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data, labels = draw.integers(0, 256, (10, 3072)).astype(np.uint8), draw.integers(0, 10, 10).tolist()
        content = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
        (folder / "data" / "cifar-10-batches-py" / name).write_bytes(content)


def _first_release(workshop: Workshop, folder: Path) -> None:
    """A half training whose configuration carries no checksum."""
    _half(workshop, folder)
    path = folder / "out" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("checksum")
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


_RESUMED = f"train sam {TRAIN} --keep-every 4 --resume --out out"
_SURFACE = "landscape.surfaces.grid.journal:PointJournal", "append"
_ROWS = "landscape.results.journal:Journal", "row"
SPECIMENS = {
    "checkpoint": Specimen(_checkpoint, ("ckpt.pt",), f"analyze ckpt.pt {_NORM}"),
    "foreign checkpoint, zip": Specimen(_foreign, ("theirs.pth",), f"analyze theirs.pth {_FOREIGN}"),
    "foreign checkpoint, no zip": Specimen(_legacy, ("theirs.pth",), f"analyze theirs.pth {_FOREIGN}", unverified=True),
    "safetensors": Specimen(
        _safetensors, ("theirs.safetensors",), f"analyze theirs.safetensors {_FOREIGN}", unverified=True
    ),
    "distributed checkpoint": Specimen(
        _distributed, ("theirs/*", "theirs/.metadata"), f"analyze theirs {_FOREIGN}", unverified=True
    ),
    "training: ckpt.pt, config.json": Specimen(_half, ("out/ckpt.pt", "out/config.json"), _RESUMED),
    "training: history.csv": Specimen(_half, ("out/history.csv",), _RESUMED),
    "training: config.json of 0.1.0": Specimen(_first_release, ("out/config.json",), _RESUMED),
    "results, exported": Specimen(_results, ("results.h5",), "export results.h5 --to json --out out"),
    "results of 0.1.0, exported": Specimen(_unsealed, ("results.h5",), "export results.h5 --to json --out out"),
    "analysis, reused": Specimen(
        _copy("analyze"),
        ("out/analysis.h5",),
        f"analyze {{inputs}}/first/ckpt.pt --samples 100 --grid 5 --measure sam_sharpness {_OUT}",
    ),
    "surface on its way": Specimen(
        _begun("surface", *_SURFACE, 90),
        ("out/surface.h5.surface.partial/*",),
        f"surface {{inputs}}/first/ckpt.pt --grid 15 --gradient-norm --samples 100 --resume {_OUT}",
    ),
    "invariance on its way": Specimen(
        _begun("invariance", *_ROWS, 3),
        ("out/invariance.partial.jsonl",),
        "invariance {inputs}/first/ckpt.pt --transforms 6 --steps 1 --samples 40 -p 2 --no-eigenvalues --resume "
        f"{_OUT}",
    ),
    "study of a figure": Specimen(
        _copy("figures"),
        ("out/study/runs/*/done.json", "out/study/results/*.h5", "out/asam-fig1.h5", "out/*-verdict.json"),
        f"figures asam-fig1 --seeds 1 --workers 1 {_OUT}",
    ),
    "npz": Specimen(_npz(np.savez), ("data.npz",), f"analyze ckpt.pt --data npz:data.npz {_NORM}"),
    "npz, compressed": Specimen(
        _npz(np.savez_compressed), ("data.npz",), f"analyze ckpt.pt --data npz:data.npz {_NORM}"
    ),
    "idx": Specimen(_idx(False), ("data/*",), f"train sgd --data mnist {_IMAGES}", unverified=True),
    "idx, gzip": Specimen(_idx(True), ("data/*",), f"train sgd --data mnist {_IMAGES}"),
    "cifar, binary": Specimen(_cifar, ("data/*/*",), f"train sgd --data cifar10 {_IMAGES}"),
    "cifar, pickled": Specimen(_pickled, ("data/*/*",), f"train sgd --data cifar10 {_IMAGES}"),
}
