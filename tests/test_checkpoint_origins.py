"""Checkpoints as trainers and libraries write them: the right weights, or a line that names what is in the file."""

import argparse
import copy
import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from landscape import InputError
from landscape.checkpoint import UnfitWeights
from tests.checkpoint_cases import loaded, require_equal, saved, trained, under


def build():
    """Layers within layers, so that a wrapper can stand in the middle of a name."""
    return nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), nn.Linear(5, 3))


RIGHT = trained(build)
OTHER = trained(build, factor=0.3)
STATE, WRONG = RIGHT.state_dict(), OTHER.state_dict()


def optimizer():
    model = copy.deepcopy(RIGHT)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    sgd.step()
    return sgd.state_dict()


def average():
    """An average of both networks, and its own state."""
    averaged = AveragedModel(RIGHT, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for model in (RIGHT, OTHER):
        averaged.update_parameters(model)
    return averaged.state_dict()


def compiled_within(*path):
    model = copy.deepcopy(RIGHT)
    outer = model
    for name in path[:-1]:
        outer = outer[name]
    outer[path[-1]] = torch.compile(outer[path[-1]])
    return model.state_dict()


def sharded_names():
    return OrderedDict(
        (n.replace("1.0.", "1._fsdp_wrapped_module.0._checkpoint_wrapped_module."), t) for n, t in STATE.items()
    )


ONE = {
    "fastai": lambda: {"model": STATE, "opt": optimizer()},
    "mmengine": lambda: {
        "meta": {"epoch": 3, "iter": 40, "cfg": "x = 1", "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": STATE, "message_hub": {"runtime_info": {"iter": 40}}, "optimizer": optimizer(),
    },
    "DeepSpeed, mp_rank_00_model_states": lambda: {
        "module": STATE, "buffer_names": ["1.1.running_mean"], "optimizer": None, "ds_version": "0.16",
        "param_shapes": [OrderedDict((n, t.shape) for n, t in RIGHT.named_parameters())], "global_steps": 10,
    },
    "Composer": lambda: {
        "state": {"model": under("module.", STATE), "optimizers": {"SGD": optimizer()}, "timestamp": {"epoch": 1}},
        "rng": [{"torch": torch.get_rng_state()}],
    },
    "nanoGPT": lambda: {"model": under("_orig_mod.", STATE), "model_args": {}, "best_val_loss": torch.tensor(1.0)},
    "DataParallel twice": lambda: {"net": under("module.module.", STATE)},
    "torch.compile": lambda: torch.compile(RIGHT).state_dict(),
    "torch.compile of a layer": lambda: compiled_within(1),
    "torch.compile of a layer in a layer, DDP": lambda: {"state_dict": under("module.", compiled_within(1, 0))},
    "FSDP with activation checkpoints": lambda: {"model": sharded_names()},
    "SWA": lambda: AveragedModel(RIGHT).state_dict(),
    "a tuple": lambda: (STATE, optimizer()),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ONE)
def test_weights_of_a_trainer_are_read_as_they_are(name, legacy, tmp_path):
    torch.save(ONE[name](), tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    require_equal(loaded(build, tmp_path / "x.pt"), RIGHT)


SEVERAL = {
    "torchvision's references": (
        lambda: {"model": STATE, "model_ema": average(), "args": argparse.Namespace(lr=0.1), "epoch": 3},
        "model, model_ema.module", "model",
    ),
    "timm": (
        lambda: {"arch": "x", "state_dict": STATE, "state_dict_ema": WRONG},
        "state_dict, state_dict_ema", "state_dict",
    ),
    "mmengine's EMA": (
        lambda: {"state_dict": WRONG, "ema_state_dict": {**under("module.", STATE), "steps": torch.tensor(4)}},
        "state_dict, ema_state_dict.module", "ema_state_dict",
    ),
    "MoCo": (
        lambda: {"state_dict": {
            **under("module.encoder_q.", STATE), **under("module.encoder_k.", WRONG), "module.queue": torch.ones(8, 4),
        }},
        "state_dict.module.encoder_q, state_dict.module.encoder_k", "state_dict.module.encoder_q",
    ),
    "DINO": (
        lambda: {"student": under("module.backbone.", WRONG), "teacher": under("backbone.", STATE)},
        "student.module.backbone, teacher.backbone", "teacher",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::landscape.errors.CheckpointWarning")
@pytest.mark.parametrize("name", SEVERAL)
def test_several_sets_of_a_trainer_are_listed_and_one_is_chosen(name, tmp_path):
    content, listed, key = SEVERAL[name]
    path = saved(content(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"holds several sets of weights that fit: {listed}; say which, --key"):
        loaded(build, path)
    require_equal(loaded(build, path, key=key), RIGHT)


def test_a_file_with_a_wrapped_and_a_plain_network_keeps_both_apart(tmp_path):
    path = saved({**STATE, **under("_orig_mod.", WRONG)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"it holds _orig_mod\.0\.weight \(5, 4\), .* which the model has not"):
        loaded(build, path)
    require_equal(loaded(build, path, key="_orig_mod"), OTHER)


def test_names_of_wrappers_that_the_network_has_itself_are_kept(tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = build()

    right = trained(Holder)
    require_equal(loaded(Holder, saved(right.state_dict(), tmp_path / "x.pt")), right)


def test_weights_that_are_computed_are_not_mended_by_a_name(tmp_path):
    """`--rename weight_orig=weight` would load a pruned network without its mask."""
    pruned, parametrized, normalized = (copy.deepcopy(RIGHT) for _ in range(3))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    parametrizations.weight_norm(parametrized[2])
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(normalized[1][0])
    for model, words in (
        (pruned, r"it was pruned, weight = weight_orig \* weight_mask: .* torch.nn.utils.prune.remove"),
        (parametrized, "its weights are parametrized.*remove_parametrizations"),
        (normalized, "it has weight normalization, weight = g v /.*remove_weight_norm"),
    ):
        path = saved(model.state_dict(), tmp_path / "x.pt")
        with pytest.raises(UnfitWeights, match=words) as raised:
            loaded(build, path)
        assert "--rename" not in str(raised.value)

    def pruning():
        model = build()
        prune.identity(model[0], "weight")
        return model

    path = saved(pruned.state_dict(), tmp_path / "x.pt")
    x = torch.ones(2, 4)
    torch.testing.assert_close(loaded(pruning, path)(x), pruned.eval()(x), rtol=0, atol=0)


def archive_of(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.pkl", pickle.dumps(STATE), r"is a plain pickle, which is read by running it: .* torch.save\("),
        ("x.pkl", pickle.dumps({"model": {"w": [1.0]}}, protocol=2), "is a plain pickle"),
        ("x.onnx", b"\x08\x08\x12\x07pytorch", "is a graph of ONNX"),
        ("x.msgpack", b"\x81\xa6params", "is weights of Flax"),
        ("x.pth", b"<!DOCTYPE html><html>404", "is a web page, not the file that was to be downloaded"),
        ("x.pth", b"BZh91AY", "is compressed: unpack it first, bunzip2 -k"),
        ("x.zip", archive_of("readme.txt", "net.pt"), r"is a zip archive of other files \(readme.txt\): unpack it"),
        ("x.keras", archive_of("metadata.json", "model.weights.h5"), "is a model of Keras"),
    ],
)
def test_files_of_others_are_refused_by_their_right_name(name, content, words, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        loaded(build, tmp_path / name)
    assert capfd.readouterr().err == "", "nothing but the line"


def test_a_safetensors_file_whose_header_looks_like_a_pickle_is_none(tmp_path):
    """The first byte is the lowest of the header's length; 0x80 begins a pickle, too."""
    safetensors = pytest.importorskip("safetensors.torch")
    for padding in range(256):
        content = safetensors.save({n: t.contiguous() for n, t in STATE.items()}, {"note": "x" * padding})
        if content[0] == 0x80:
            break
    assert content[0] == 0x80
    (tmp_path / "x").write_bytes(content)
    require_equal(loaded(build, tmp_path / "x"), RIGHT)
