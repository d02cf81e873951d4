"""Digests: files that exist carry them, so every value stays what it is."""

import hashlib
import json
from pathlib import Path

import torch

from landscape.random import stream
from landscape.results import digest

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_and_parts(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest.of_file(tmp_path / "x") == ABC
    assert digest.of_parts([b"a", "bc"]) == ABC
    assert digest.of_parts([torch.tensor([97, 98], dtype=torch.uint8), "c"]) == ABC


def test_tensors_of_any_layout():
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = [whole.T, whole[:, 1], torch.tensor(2.0, dtype=torch.bfloat16), torch.zeros(0), torch.tensor([True])]
    bytes_of = [t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
    assert digest.of_parts(tensors) == hashlib.sha256(b"".join(bytes_of)).hexdigest()
    heads = [str((tuple(t.shape), t.dtype)).encode() for t in tensors]
    expected = hashlib.sha256(b"".join(h + b for h, b in zip(heads, bytes_of, strict=True))).hexdigest()
    assert digest.of_tensors(tensors) == expected


def test_pieces_do_not_show(monkeypatch):
    vector = torch.arange(10.0)
    whole = digest.of_tensors([vector])
    monkeypatch.setattr(digest, "_PIECE", 3)
    assert digest.of_tensors([vector]) == whole


def test_configurations():
    content = {"b": [1, 2.5, None], "a": Path("x")}
    text = json.dumps({"a": "x", "b": [1, 2.5, None]})
    assert digest.of_configuration(content) == hashlib.sha256(text.encode()).hexdigest()


def test_streams_start_where_they_did():
    start = hashlib.sha256(b"3:noise").digest()[:8]
    assert stream(3, "noise").initial_seed() == int.from_bytes(start, "little") >> 1
