"""Files that were made to harm: code in pickles, links, storage elsewhere, bombs, sequences for the terminal.

Each function fills a folder and returns the command line that reads what it made. `outside` is a folder beside it that
holds a secret and must stay as it is; code that ran would write to it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from torture.commands import DATA, NETWORK, TRAIN
from torture.workshop import Workshop

SECRET = "4711.0815"
"""What `outside/secret` holds, as text and as numbers."""
ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e"
_OUT = "--quiet --device cpu --out out"
_ANALYZE = f"analyze {{}} --model {NETWORK} --data {DATA} --measure gradient_norm --grid 0 --samples 100 {_OUT}"
_TRAIN = f"train sgd --data {{}} --data-dir data --model mlp:hidden=4 --epochs 1 --batch-size 10 {_OUT}"
_EXPORT = "export evil.h5 --to {} --out out"
_BIG = 1 << 32


class Code:
    """Pickled, it calls something when it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def _code(draw: random.Random, outside: Path) -> Code:
    mark = str(outside / "ran")
    calls: list[tuple[Any, ...]] = [
        (os.mkdir, mark),
        (os.system, f"touch {mark}"),
        (exec, f"open({mark!r}, 'w')"),
        (open, mark, "w"),
    ]
    return Code(*draw.choice(calls))


def code_in_a_checkpoint(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    zipped = draw.random() < 0.5
    state = {"a": torch.ones(3), draw.choice(["epoch", "model", "hyper_parameters"]): _code(draw, outside)}
    torch.save(state, folder / "evil.pth", _use_new_zipfile_serialization=zipped)
    return _ANALYZE.format("evil.pth")


def code_in_a_resumed_training(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    content = torch.load(workshop.inputs / "first" / "ckpt.pt", weights_only=True)
    content[draw.choice(list(content))] = _code(draw, outside)
    (folder / "out").mkdir()
    torch.save(content, folder / "out" / "ckpt.pt")
    return f"train sam {TRAIN} --resume --out out"


def code_in_directions(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """Of a surface on its way, whose header is right."""
    import shutil

    from torture.specimens import SPECIMENS

    SPECIMENS["surface on its way"].make(workshop, folder)
    partial = folder / "out" / "surface.h5.surface.partial"
    torch.save({"vectors": _code(draw, outside)}, folder / "new.pt")
    shutil.move(folder / "new.pt", partial / "directions.pt")
    return SPECIMENS["surface on its way"].line.format(inputs=workshop.inputs)


def code_in_cifar(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    data = folder / "data" / "cifar-10-batches-py"
    data.mkdir(parents=True)
    content = pickle.dumps({b"data": _code(draw, outside), b"labels": [1]}, protocol=draw.randint(0, 5))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (data / name).write_bytes(content)
    return _TRAIN.format("cifar10")


def code_in_npz(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    evil = np.empty(1, dtype=object)
    evil[0] = _code(draw, outside)
    np.savez(folder / "evil.npz", x_train=evil, y_train=np.zeros(1, int), x_test=evil, y_test=np.zeros(1, int))
    return f"train sgd --data npz:evil.npz --model mlp:hidden=4 --epochs 1 {_OUT}"


def nested_pickle(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """A list of ten references to a list of ten references, and so on."""
    deep = draw.randint(20, 60)
    levels = (b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(deep))
    evil = b"\x80\x02]q\x00" + b"".join(levels)
    data = folder / "data" / "cifar-10-batches-py"
    data.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (data / name).write_bytes(evil + b".")
    return _TRAIN.format("cifar10")


def gzip_bomb(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """Gigabytes of zeros behind a header of ten images."""
    (folder / "data").mkdir()
    shape = [draw.choice([10, 60_000]), 28, 28]
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape)
    zeros = gzip.compress(bytes(1 << 24), 9)
    for part in ("train", "t10k"):
        bomb = gzip.compress(header) + zeros * draw.choice([8, 256])
        (folder / "data" / f"{part}-images-idx3-ubyte.gz").write_bytes(bomb)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 10) + bytes(10)
        (folder / "data" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return _TRAIN.format("mnist")


def tar_bomb(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """Members that are links, lie outside, or promise gigabytes."""
    (folder / "data").mkdir()
    with tarfile.open(folder / "data" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            kind = draw.choice(["symlink", "hardlink", "outside", "large"])
            if kind in ("symlink", "hardlink"):
                info.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
                info.linkname = str(outside / "secret")
                tar.addfile(info)
                continue
            info.name = f"{outside}/../outside/{name}" if kind == "outside" else info.name
            info.size = 30730 if kind == "outside" else 1 << 27
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return _TRAIN.format("cifar10")


def npz_bomb(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """A header that promises what is not there, or zeros without end behind one that promises little."""
    little = draw.random() < 0.5
    shape = (10, 2) if little else (_BIG, draw.choice([2, 2**31]))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(folder / "evil.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            with archive.open(f"{name}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(64):
                    member.write(bytes(1 << 22))
    return f"train sgd --data npz:evil.npz --model mlp:hidden=4 --epochs 1 {_OUT}"


def hdf5_elsewhere(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """Storage in, or a link to, another file."""
    with h5py.File(outside / "other.h5", "a") as other:
        other.require_dataset("loss", (3,), "f8")[:] = float(SECRET)
    with h5py.File(folder / "evil.h5", "w") as file:
        group = file.create_group("result")
        group.attrs.update(type="LabelledArrays", arguments="{}")
        kind = draw.choice(["storage", "external", "soft", "virtual"])
        if kind == "storage":
            group.create_dataset("loss", (3,), "f8", external=[(str(outside / "numbers"), 0, 24)])
        elif kind == "external":
            group["loss"] = h5py.ExternalLink(str(outside / "other.h5"), "/loss")
        elif kind == "soft":
            group["loss"] = h5py.SoftLink("/result")
        else:
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(str(outside / "other.h5"), "loss", (3,))
            group.create_virtual_dataset("loss", layout)
    return _EXPORT.format(draw.choice(["json", "csv", "npz"]))


def hdf5_bomb(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """Sizes that are not in the file, filters, deep and circular groups."""
    with h5py.File(folder / "evil.h5", "w") as file:
        group = file.create_group("result")
        group.attrs.update(type="LabelledArrays", arguments="[" * 50_000 if draw.random() < 0.3 else "{}")
        kind = draw.choice(["sparse", "filter", "circle", "deep"])
        if kind == "sparse":
            group.create_dataset("loss", shape=(10 ** draw.randint(5, 9), 10**6), dtype="f8")
        elif kind == "filter":
            group.create_dataset("loss", data=np.zeros((4096, 4096)), compression="gzip", compression_opts=9)
        elif kind == "circle":
            group["again"] = group
        else:
            for _ in range(500):
                group = group.create_group("a")
    return _EXPORT.format(draw.choice(["json", "csv", "npz"]))


def a_lock_that_is_a_link(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """In a directory that came from somebody: locks and unfinished files that lead elsewhere."""
    (folder / "out").mkdir()
    names = (".lock", ".surface.h5.lock", ".surface.h5.x.unfinished", ".ckpt.pt.x")
    for name in draw.sample(names, draw.randint(1, 4)):
        (folder / "out" / name).symlink_to(outside / "secret")
    surface = f"surface {workshop.inputs}/first/ckpt.pt --grid 3 --samples 100 {_OUT}"
    return draw.choice([surface, f"train sam {TRAIN} --epochs 1 --out out"])


def a_file_that_never_ends(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """A pipe, or a device, in place of a file."""
    path = folder / draw.choice(["evil.h5", "ckpt.pt", "evil.npz", "evil.safetensors"])
    if draw.random() < 0.5:
        os.mkfifo(path)
    else:
        path.symlink_to(draw.choice(["/dev/zero", "/dev/random"]))
    lines = {".h5": _EXPORT.format("json"), ".npz": f"train sgd --data npz:evil.npz --epochs 1 {_OUT}"}
    return lines.get(path.suffix, _ANALYZE.format(path.name))


def escapes_in_a_checkpoint(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    content = torch.load(workshop.inputs / "first" / "ckpt.pt", weights_only=True)
    part = draw.choice(["method", "model", "data", "provenance", "state", "version", "key"])
    if part in ("method", "model", "data"):
        content[part]["name"] = f"{content[part]['name']}{ESCAPE}"
    elif part == "state":
        content["model"]["state"][f"x{ESCAPE}"] = torch.ones(2)
    else:
        content[{"key": ESCAPE}.get(part, part)] = {ESCAPE: ESCAPE} if part != "version" else ESCAPE
    torch.save(content, folder / "evil.pt")
    return f"analyze evil.pt --measure gradient_norm --grid 0 --samples 100 {_OUT}"


def escapes_in_results(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    with h5py.File(folder / "evil.h5", "w") as file:
        group = file.create_group(draw.choice(["result", f"a{ESCAPE}"]))
        kind = draw.choice(["LabelledArrays", f"x{ESCAPE}"])
        group.attrs.update(type=kind, arguments=json.dumps({ESCAPE: ESCAPE}), provenance=json.dumps([ESCAPE]))
        group.create_dataset(draw.choice(["loss", f"l{ESCAPE}"]), data=[1.0])
    return _EXPORT.format(draw.choice(["json", "csv", "npz"]))


def escapes_in_names(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """The name of a file, of a network, of an output directory."""
    name = f"a{ESCAPE}"
    return draw.choice(
        [
            f"analyze {name}.pt",
            f"export {name}.h5 --to json",
            f"train {name}",
            f"analyze {workshop.inputs}/first/ckpt.pt --measure {name} {_OUT}",
            f"train sgd --model {name} --epochs 1 --quiet --out out",
            f"train sgd --data {name} --epochs 1 --quiet --out out",
            f"{name}",
        ]
    )


def deep_records(draw: random.Random, folder: Path, outside: Path, workshop: Workshop) -> str:
    """JSON nested beyond reason, or a number of a million digits."""
    (folder / "out").mkdir()
    text = draw.choice(["[" * 10**6, '{"a":' * 10**5, f'{{"method": {"9" * 10**6}}}', f'{{"{ESCAPE}": 1}}'])
    (folder / "out" / "config.json").write_text(text, encoding="utf-8")
    return f"train sam {TRAIN} --resume --out out"


HOSTILE = {
    "code in pickles": (
        *(code_in_a_checkpoint, code_in_a_resumed_training, code_in_directions, code_in_cifar, code_in_npz),
    ),
    "links and storage elsewhere": (hdf5_elsewhere, a_lock_that_is_a_link),
    "bombs": (nested_pickle, gzip_bomb, tar_bomb, npz_bomb, hdf5_bomb, deep_records, a_file_that_never_ends),
    "sequences for the terminal": (escapes_in_a_checkpoint, escapes_in_results, escapes_in_names),
}
