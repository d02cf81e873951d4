"""Kinds of files, recognized by their first bytes or the entries of their archive, and how weights get out of each."""

from __future__ import annotations

import zipfile
from pathlib import Path

from landscape import archive
from landscape.errors import InputError

_STATE = "save a state dict, torch.save(model.state_dict(), 'state.pt')"
_EXPORTED = f"a program of torch.export, which holds code: {_STATE} of the network that it was made of"
_UNPACK = "compressed: unpack it first"
_PAGE = "a web page, not the file that was to be downloaded (an error, or a page about it): download it again"
_SIGNATURES = {
    b"GGUF": "a GGUF file, whose weights are quantized: give the network's safetensors or state dict",
    b"\x89HDF": "an HDF5 file, results or another tool's weights: give a checkpoint of PyTorch",
    b"\x1f\x8b": "compressed by gzip: unpack it first, gunzip -k",
    b"BZh": f"{_UNPACK}, bunzip2 -k",
    b"\xfd7zXZ": f"{_UNPACK}, unxz -k",
    b"\x28\xb5\x2f\xfd": f"{_UNPACK}, unzstd",
    b"7z\xbc\xaf": _UNPACK,
    b"<!doctype": _PAGE,
    b"<!DOCTYPE": _PAGE,
    b"<html": _PAGE,
    b"version https://git-lfs": "the pointer of a file in Git LFS, which is elsewhere: git lfs pull",
}
_FOREIGN = "whose weights have other names and layouts: give a state dict of the network in PyTorch"
_DISTRIBUTED = "one file of a checkpoint of torch.distributed.checkpoint: give the folder that it lies in"
_SUFFIXES = {
    ".onnx": f"a graph of ONNX, {_FOREIGN}",
    ".msgpack": f"weights of Flax, {_FOREIGN}",
    ".pb": f"a graph of TensorFlow, {_FOREIGN}",
    ".tflite": f"a graph of TensorFlow Lite, {_FOREIGN}",
    ".mlmodel": f"a model of Core ML, {_FOREIGN}",
    ".distcp": _DISTRIBUTED,
    ".metadata": _DISTRIBUTED,
}
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""Torch's magic number, a pickle by itself, which files of torch.save before the zip form begin with."""
_PICKLE = (
    "a plain pickle, which is read by running it: where you trust it, save its tensors again, "
    "torch.save({k: torch.as_tensor(v) for k, v in pickle.load(open(path, 'rb')).items()}, 'state.pt')"
)
_ARCHIVES = {
    "constants.pkl": f"a TorchScript archive (torch.jit.save), which holds code: load it with torch.jit.load, {_STATE}",
    "serialized_exported_program.json": _EXPORTED,
    "archive_format": _EXPORTED,
    "model.weights.h5": f"a model of Keras, {_FOREIGN}",
    ".npy": "a file of numpy arrays (.npz), not of a network: give a checkpoint",
}


def require_known(path: Path) -> None:
    """Raise InputError with the file's kind, and what to do, where it is one that cannot be read as weights."""
    with path.open("rb") as stream:
        head = stream.read(32)
    kind = next(
        (kind for start, kind in _SIGNATURES.items() if head.startswith(start)), _SUFFIXES.get(path.suffix or path.name)
    )
    if kind is None and head.startswith(b"\x80") and _LEGACY not in head and not is_safetensors(path):
        kind = _PICKLE
    if kind is None and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as opened:
                names = opened.namelist()
        except archive.DAMAGE:
            names = []  # said by who verifies the archive
        kind = next((kind for end, kind in _ARCHIVES.items() if any(name.endswith(end) for name in names)), None)
        if kind is None and names and not any(name.endswith("data.pkl") for name in names):
            kind = f"a zip archive of other files ({names[0]}): unpack it and give the one with the weights"
    if kind is not None:
        raise InputError(f"{path} is {kind}")


def is_safetensors(path: Path) -> bool:
    """By the suffix, or by the length of a header and its brace where the suffix says nothing."""
    with path.open("rb") as stream:
        head = stream.read(9)
    header = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and 0 < header < path.stat().st_size)
