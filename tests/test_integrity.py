"""Every file says whether it is whole: damaged, compressed and forged ones end in one line, never in other numbers."""

import copy
import os
import random
import zipfile

import pytest
import torch

from landscape import InputError, archive, checkpoint

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.ones(3)}
CONTENT = {
    "model": {"name": "mlp", "arguments": {"hidden": 3}, "state": STATE},
    "data": {"name": "digits", "arguments": {}},
    "method": {"name": "sgd", "arguments": {}, "state": {}},
    "epoch": 1,
    "step": 10,
    "provenance": {},
}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "ckpt.pt"
    checkpoint.write(path, CONTENT)
    return path


def refused(path, read=checkpoint.read):
    """Whether the file is refused in one line; else it holds the very tensors that were written."""
    try:
        state = read(path)
    except InputError as error:
        return str(error).isprintable()
    state = state["model"]["state"] if "model" in state else state
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    return False


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut"])
def test_no_damage_to_a_checkpoint_reaches_the_weights(whole, tmp_path, damage):
    raw, draw, path = whole.read_bytes(), random.Random(damage), tmp_path / "damaged.pt"
    outcomes = []
    for _ in range(200):
        changed, at = bytearray(raw), draw.randrange(len(raw))
        if damage == "bit":
            changed[at] ^= 1 << draw.randrange(8)
        elif damage == "zeros":
            changed[at : at + 64] = bytes(min(64, len(raw) - at))
        else:
            del changed[at:]
        path.write_bytes(changed)
        outcomes.append(refused(path))
    assert sum(outcomes) > 20  # the rest hit padding, dates or bytes that were zero


def test_one_flipped_bit_in_a_weight_is_refused(whole):
    with zipfile.ZipFile(whole) as members:
        entry = max((m for m in members.infolist() if "/data/" in m.filename), key=lambda m: m.file_size)
    raw = bytearray(whole.read_bytes())
    at = entry.header_offset + 26
    start = at + 4 + int.from_bytes(raw[at : at + 2], "little") + int.from_bytes(raw[at + 2 : at + 4], "little")
    raw[start + 3] ^= 0x40
    whole.write_bytes(raw)
    with pytest.raises(InputError, match="damaged .*Bad CRC-32"):
        checkpoint.read(whole)
    with pytest.raises(InputError, match="damaged .*Bad CRC-32"):
        checkpoint.read_state(whole)


def test_compressed_members_are_refused_by_name(whole, tmp_path):
    path = tmp_path / "deflated.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match="is compressed: .*torch.save"):
        checkpoint.read(path)


FIELDS = {
    "model.arguments is missing": lambda c: c["model"].pop("arguments"),
    "data is a int, not a dict": lambda c: c.update(data=3),
    "method is a float, not a dict": lambda c: c.update(method=float("inf")),
    "model.name is a int, not a str": lambda c: c["model"].update(name=7),
    "model.state is a list, not a dict": lambda c: c["model"].update(state=[]),
    r"model.state\['x'\] is a str, not a tensor": lambda c: c["model"]["state"].update(x="y"),
    "epoch is a str, not a int": lambda c: c.update(epoch="one"),
    "step is a bool, not a int": lambda c: c.update(step=True),
    r"version 'a\\x1b\[31m\\nb'": lambda c: c.update(version="a\x1b[31m\nb"),
    "x has 1000000000000 entries but the file holds 1": lambda c: c["model"]["state"].update(
        x=torch.zeros(1).expand(10**12)
    ),
}


@pytest.mark.parametrize("message", FIELDS)
def test_fields_of_another_kind_are_named(tmp_path, message):
    content = {"format": "landscape-checkpoint", "version": 1, **copy.deepcopy(CONTENT)}
    FIELDS[message](content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        checkpoint.read(tmp_path / "x.pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="no regular file"):
        checkpoint.read(tmp_path / "ckpt.pt")


def test_members_larger_than_their_file_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("a", b"abc")
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02") + 24
    path.write_bytes(raw[:at] + (1 << 30).to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(InputError, match="larger than the file"):
        archive.verify(path)
