"""This toolkit's checkpoints: read safely, written whole, clear about what is wrong with a file."""

import os
import pickle

import pytest
import torch

from landscape import InputError, checkpoint

CONTENT = {
    "model": {"name": "mlp", "arguments": {}, "state": {"w": torch.ones(3)}},
    "data": {"name": "digits", "arguments": {}},
    "method": {"name": "sgd", "arguments": {}, "state": {}},
    "epoch": 1,
    "step": 10,
    "provenance": {},
}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_round_trip(tmp_path):
    checkpoint.write(tmp_path / "ckpt.pt", CONTENT)
    loaded = checkpoint.read(tmp_path / "ckpt.pt")
    assert loaded["format"] == "landscape-checkpoint"
    assert torch.equal(loaded["model"]["state"]["w"], torch.ones(3))
    assert torch.load(tmp_path / "ckpt.pt", weights_only=True)["step"] == 10


def test_what_would_not_load_safely_is_not_written(tmp_path):
    import numpy as np

    with pytest.raises(InputError, match=r"checkpoint\['provenance'\]\['x'\] is a float64"):
        checkpoint.write(tmp_path / "ckpt.pt", {**CONTENT, "provenance": {"x": np.float64(1)}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    checkpoint.write(path, CONTENT)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device.*--out"):
        checkpoint.write(path, CONTENT)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _: save(content, "/dev/full"))
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device \(\d+ bytes free\); free space or"):
        checkpoint.write(tmp_path / "ckpt.pt", CONTENT)
    assert not list(tmp_path.iterdir())


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(
            InputError,
            match=r"pickled Python objects \(\w+.mkdir\), which are never loaded|is a plain pickle, which is read",
        ):
            checkpoint.read(name)
    assert not (tmp_path / "pwned").exists()


def test_bad_files_are_named(tmp_path):
    good = tmp_path / "ckpt.pt"
    checkpoint.write(good, CONTENT)
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(good.read_bytes()[:-300])
    empty = tmp_path / "empty.pt"
    empty.touch()
    foreign = tmp_path / "foreign.pt"
    torch.save({"w": torch.ones(1)}, foreign)
    text = tmp_path / "text.pt"
    text.write_text("hello")
    newer = tmp_path / "newer.pt"
    torch.save({**CONTENT, "format": "landscape-checkpoint", "version": 99}, newer)
    half = tmp_path / "half.pt"
    torch.save({"format": "landscape-checkpoint", "version": 1}, half)
    for path, message in {
        truncated: "truncated or another format",
        empty: "is empty",
        foreign: "not a checkpoint of this toolkit.*--model",
        text: "truncated or another format",
        newer: "version 99, this release reads 1",
        half: "lacks model, data",
        tmp_path: f"is a directory: did you mean {good}",
        tmp_path / "absent.pt": "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            checkpoint.read(path)
