"""Files and folders as people have them: read as data, or refused by their right name."""

import argparse
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from landscape import InputError, checkpoint
from landscape.errors import CheckpointWarning
from tests.checkpoint_cases import build, loaded, require_equal, saved, trained

STATE = dict(trained().state_dict())


def save_file(tensors, path):
    pytest.importorskip("safetensors.torch").save_file(tensors, path)
    return path


def test_safetensors(tmp_path):
    require_equal(loaded(build, save_file(STATE, tmp_path / "x.safetensors")), trained())
    require_equal(loaded(build, save_file(STATE, tmp_path / "without_suffix")), trained())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((tmp_path / "x.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        loaded(build, damaged)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards_are_one_state_dict(suffix, indexed, tmp_path):
    names = [f"model-{i:05d}-of-00002{suffix}" for i in (1, 2)]
    places = {name: names[name.startswith("2.")] for name in STATE}
    for file in names:
        part = {k: v for k, v in STATE.items() if places[k] == file}
        (save_file if suffix == ".safetensors" else saved)(part, tmp_path / file)
    index = tmp_path / f"model{suffix}.index.json"
    if indexed:
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1], *([index] if indexed else [])):
        require_equal(loaded(build, path), trained())
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=f"several files .shards., {names[1]} is missing"):
        loaded(build, tmp_path)


@pytest.mark.parametrize("target", ["../x.bin", "/etc/passwd", 3])
def test_an_index_names_files_of_its_folder_alone(target, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": target}}))
    with pytest.raises(InputError, match="must name files of its own folder|no readable weight_map"):
        loaded(build, index)


def test_folders_are_read_or_told_what_is_in_them(tmp_path):
    saved({"x": 1}, tmp_path / "training_args.bin")
    save_file(STATE, tmp_path / "model.safetensors")
    require_equal(loaded(build, tmp_path), trained())
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match="is a directory of several files: give one of other.safetensors, training_args"
    ):
        loaded(build, tmp_path)
    zero = tmp_path / "deepspeed"
    (zero / "global_step1").mkdir(parents=True)
    (zero / "latest").write_text("global_step1")
    (zero / "global_step1" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(InputError, match=r"DeepSpeed.*zero_to_fp32.py"):
        loaded(build, zero)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_harmless_hyperparameters_are_passed_over_and_named(tmp_path):
    options = argparse.Namespace(lr=np.float64(0.1), out=pathlib.Path("x"), widths=np.arange(3))
    path = saved({"hyper_parameters": {"options": options}, "state_dict": STATE}, tmp_path / "x.ckpt")
    with pytest.warns(CheckpointWarning, match=r"argparse.Namespace.*pathlib.*PosixPath.* were passed over"):
        require_equal(loaded(build, path), trained())


@pytest.mark.filterwarnings("ignore::landscape.CheckpointWarning")
@pytest.mark.parametrize("within", [lambda arrays: arrays, lambda arrays: {"state_dict": arrays, "epoch": 3}])
def test_weights_as_numpy_arrays_are_refused_by_their_right_name(within, tmp_path):
    path = saved(within({name: tensor.numpy() for name, tensor in STATE.items()}), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"holds NumPy arrays \(.*weight.*torch.from_numpy\(v\)"):
        loaded(build, path)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_is_refused_by_name_and_never_run(legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"state_dict": STATE, "x": Evil()}, {"state_dict": STATE, "x": [argparse.Namespace(a=Evil())]}):
        torch.save(content, "x.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            InputError, match=r"\w+.mkdir.*never loaded, since loading runs their code: save a state dict"
        ):
            checkpoint.contents("x.pt")
    assert not (tmp_path / "pwned").exists()


def test_whole_networks_are_refused_by_their_right_name(tmp_path):
    torch.save(build(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"is a whole pickled model.*torch.nn.modules.*torch.save\(model.state_dict"):
        checkpoint.contents(tmp_path / "whole.pt")
    x = torch.ones(2, 4)
    for name, archive in (("script", torch.jit.script(build())), ("trace", torch.jit.trace(build(), x))):
        archive.save(str(tmp_path / name))
        with pytest.raises(InputError, match=r"is a TorchScript archive.*torch.jit.load, save a state dict"):
            checkpoint.contents(tmp_path / name)
    torch.export.save(torch.export.export(build(), (x,)), tmp_path / "program.pt2")
    with pytest.raises(InputError, match="is a program of torch.export"):
        checkpoint.contents(tmp_path / "program.pt2")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="needs a quantization engine")
def test_a_quantized_network_is_refused_by_its_right_name(tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(build(), {nn.Linear})
    path = saved(quantized.state_dict(), tmp_path / "x.pt")
    for make in (build, lambda: torch.ao.quantization.quantize_dynamic(build(), {nn.Linear})):
        with pytest.raises(InputError, match="holds quantized weights .*from before its quantization"):
            loaded(make, path)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (torch.Tensor.to_sparse, r"0\.weight is stored as torch\.sparse_coo: save it again after \.to_dense\(\)"),
        (torch.Tensor.to_sparse_csr, r"0\.weight is stored as torch\.sparse_csr: save it again after \.to_dense\(\)"),
        (lambda tensor: tensor.to("meta"), r"0\.weight holds no numbers \(device meta\)"),
    ],
)
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_tensors_that_are_not_dense_are_refused_by_name(form, words, sets, tmp_path):
    """Where a file holds two sets of weights, they are compared first."""
    state = trained().state_dict()
    state["0.weight"] = form(state["0.weight"].detach())
    content = state if sets == 1 else {"ema": trained().state_dict(), "model": state}
    with pytest.raises(InputError, match=words) as refused:
        loaded(build, saved(content, tmp_path / "w.pt"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"GGUF\x03", "GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 file"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_other_files_are_named(start, kind, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(start + bytes(64))
    with pytest.raises(InputError, match=kind):
        checkpoint.contents(path)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(InputError, match="numpy arrays"):
        checkpoint.contents(tmp_path / "x.npz")


def distributed(state, folder):
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_distributed_checkpoint_is_read_as_data(tmp_path):
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    require_equal(loaded(build, distributed(state, tmp_path / "d")), model)
    for file in (tmp_path / "d").iterdir():
        with pytest.raises(InputError, match="give the folder that it lies in"):
            loaded(build, file)
    os.truncate(next((tmp_path / "d").glob("*.distcp")), 5000)
    with pytest.raises(InputError, match="cannot be read|can be read|incomplete"):
        loaded(build, tmp_path / "d")


def table(**attributes):
    """A table of contents as the processes of a sharded training leave it."""
    from torch.distributed.checkpoint import metadata as m
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    size = torch.Size([4, 3])
    chunks = [m.ChunkStorageMetadata(torch.Size([o, 0]), torch.Size([2, 3])) for o in (0, 2)]
    stored = {
        m.MetadataIndex("weight", c.offsets, i): _StorageInfo(f"__{i}_0.distcp", 0, attributes["lengths"][i])
        for i, c in enumerate(chunks)
    }
    properties = m.TensorProperties(torch.float32)
    return m.Metadata({"weight": m.TensorStorageMetadata(properties, size, chunks)}, storage_data=stored)


def test_pieces_of_several_processes_are_put_together(tmp_path):
    whole, lengths = torch.arange(12.0).reshape(4, 3), []
    for i in range(2):
        torch.save(whole[2 * i : 2 * i + 2].clone(), tmp_path / f"__{i}_0.distcp")
        lengths.append((tmp_path / f"__{i}_0.distcp").stat().st_size)
    metadata = table(lengths=lengths)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert torch.equal(checkpoint.contents(tmp_path)["weight"], whole)
    metadata.storage_data.popitem()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"incomplete: 6 numbers of weight \(4, 3\)"):
        checkpoint.contents(tmp_path)


def test_the_table_of_a_distributed_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Evil(), {"x": nn.Linear(1, 1)}):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match="was refused: it names"):
            checkpoint.contents(tmp_path)
    assert not (tmp_path / "pwned").exists()
    (tmp_path / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not the table of a distributed checkpoint"):
        checkpoint.contents(tmp_path)
