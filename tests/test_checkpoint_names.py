"""Weights are found where a network's names and shapes fit: in any mapping, under any prefix, or refused with help."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from landscape import InputError
from landscape.errors import CheckpointWarning
from tests.checkpoint_cases import build, loaded, require_equal, saved, trained, under

STATE = trained().state_dict()
OTHER = trained(factor=0.7).state_dict()
CONTAINERS = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "net beside numbers": {"net": STATE, "acc": 91.2, "epoch": 3},
    "a name of your own": {"the_weights": STATE, "optimizer": {"state": {0: {"m": torch.ones(5, 4)}}, "groups": []}},
    "nested twice": {"app": {"model": STATE, "optimizer": {}}},
    "in a list": [STATE, {"epoch": 3}],
    "AveragedModel": torch.optim.swa_utils.AveragedModel(trained()).state_dict(),
    "two prefixes": under("_orig_mod.module.", STATE),
    "two prefixes, the other order": under("module._orig_mod.", STATE),
    "prefixes of your own": {"state_dict": under("learner.backbone.", STATE)},
    "the same weights twice": {"model": STATE, "ema": {k: v.clone() for k, v in STATE.items()}},
    "a model of this network and another": {"model": STATE, "teacher": nn.Linear(4, 9).state_dict()},
    "a loss beside the network": {"state_dict": {"criterion.weight": torch.ones(3), **under("model.", STATE)}},
}


@pytest.mark.filterwarnings("ignore::landscape.errors.CheckpointWarning")
@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_are_read_from_any_container(name, tmp_path):
    require_equal(loaded(build, saved(CONTAINERS[name], tmp_path / "x.pt")), trained())


def test_several_sets_of_weights_are_listed(tmp_path):
    path = saved({"model": STATE, "ema": under("module.", OTHER), "optimizer": {}}, tmp_path / "x.pt")
    with pytest.raises(
        InputError, match=r"several sets of weights that fit: model, ema.module; say which, --key model"
    ):
        loaded(build, path)
    require_equal(loaded(build, path, key="model"), trained())
    for key in ("ema", "ema.module"):
        require_equal(loaded(build, path, key=key), trained(factor=0.7))
    with pytest.raises(
        InputError, match=r"no tensors under --key 'emma': it holds model \(4 tensors\), ema \(4 tensors\)"
    ):
        loaded(build, path, key="emma")


def test_the_outermost_set_has_a_key_too(tmp_path):
    path = saved({**STATE, "ema": OTHER}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="the outermost, ema; say which, --key ema"):
        loaded(build, path)
    require_equal(loaded(build, path, key=""), trained())


@pytest.mark.parametrize("name", ["model", "net", "module", "backbone"])
def test_a_prefix_is_stripped_only_where_the_names_do_not_fit_as_they_are(name, tmp_path):
    def wrapper():
        return nn.ModuleDict({name: build()})

    path = saved(trained(wrapper).state_dict(), tmp_path / "x.pt")
    require_equal(loaded(wrapper, path), trained(wrapper))
    require_equal(loaded(build, path), trained(wrapper)[name])
    bare = saved(STATE, tmp_path / "bare.pt")
    require_equal(loaded(wrapper, bare)[name], trained())


def test_a_part_of_a_network_is_not_taken_for_it(tmp_path):
    """Two layers that fit one: which of them is meant nobody can know."""
    path = saved(
        nn.ModuleDict({"a": trained(lambda: nn.Linear(2, 2)), "b": nn.Linear(2, 2)}).state_dict(), tmp_path / "x"
    )
    with pytest.raises(InputError, match="several sets of weights that fit: a, b; say which, --key a"):
        loaded(lambda: nn.Linear(2, 2), path)


def test_what_lies_outside_the_prefix_is_named(tmp_path):
    path = saved({"criterion.weight": torch.ones(3), **under("model.", STATE)}, tmp_path / "x.pt")
    with pytest.warns(CheckpointWarning, match="left out: criterion.weight"):
        loaded(build, path)


def normalized():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize("versions", [True, False])
def test_counts_of_batches_may_be_absent(versions, tmp_path):
    model = trained(normalized)
    model[1].running_mean.add_(1)
    state = model.state_dict() if versions else dict(model.state_dict())
    del state["1.num_batches_tracked"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_equal(loaded(normalized, saved(state, tmp_path / "x.pt")), model)
    del state["1.running_mean"]
    with pytest.raises(InputError, match=r"it lacks 1.running_mean \(5,\).*--allow-missing"):
        loaded(normalized, saved(state, tmp_path / "x.pt"))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("absent", ["head.weight", "embedding.weight"])
def test_a_tied_weight_is_there_under_either_name(absent, tmp_path):
    state = trained(Tied).state_dict()
    del state[absent]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = loaded(Tied, saved(state, tmp_path / "x.pt"))
    require_equal(model, trained(Tied))
    assert model.head.weight is model.embedding.weight


def test_weights_that_the_model_ties_and_the_file_does_not_are_refused(tmp_path):
    state = {**trained(Tied).state_dict(), "head.weight": torch.ones(20, 6)}
    with pytest.raises(InputError, match="embedding.weight and head.weight are one tensor in the model and differ"):
        loaded(Tied, saved(state, tmp_path / "x.pt"))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 6), nn.Linear(6, 3)
        self.register_buffer("position_ids", torch.arange(8)[None], persistent=False)
        self.register_buffer("mask", torch.ones(8, 8).tril(), persistent=False)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("position_ids", torch.arange(8)[None]),
        ("mask", torch.ones(8, 8).tril()),
        ("attention.bias", torch.ones(2, 2, dtype=torch.bool)),
        ("attention.masked_bias", torch.tensor(-1e4)),
        ("rotary.inv_freq", torch.ones(3)),
    ],
)
def test_a_stale_buffer_is_left_out_and_named(name, tensor, tmp_path):
    path = saved({**trained(Positions).state_dict(), name: tensor}, tmp_path / "x.pt")
    with pytest.warns(CheckpointWarning, match=f"left out: {name}"):
        require_equal(loaded(Positions, path), trained(Positions))


def test_a_layer_that_the_model_lacks_is_refused_unless_allowed(tmp_path):
    path = saved({**STATE, "3.weight": torch.randn(3, 3), "3.bias": torch.randn(3)}, tmp_path / "x.pt")
    with pytest.raises(
        InputError, match=r"it holds 3.weight \(3, 3\), 3.bias \(3,\), which the model has not.*--allow-extra"
    ):
        loaded(build, path)
    with pytest.raises(InputError, match=r"it holds 3.bias"):
        loaded(build, path, allow_extra=["3.w*"])
    with pytest.warns(CheckpointWarning, match="left out: 3.weight, 3.bias"):
        require_equal(loaded(build, path, allow_extra=["3.*"]), trained())


def test_a_missing_layer_is_refused_unless_allowed(tmp_path):
    path = saved({k: v for k, v in STATE.items() if k != "2.bias"}, tmp_path / "x.pt")
    with pytest.raises(
        InputError, match=r"it lacks 2.bias \(3,\): give the network that was saved, or --allow-missing"
    ):
        loaded(build, path)
    with pytest.warns(CheckpointWarning, match="as the model was built, not from the file: 2.bias"):
        model = loaded(build, path, allow_missing=["2.*"])
    assert not torch.equal(model[2].bias, STATE["2.bias"])
    assert torch.equal(model[2].weight, STATE["2.weight"])


def named(last):
    return lambda: nn.Sequential(nn.ModuleDict({"stem": nn.Linear(4, 5), last: nn.Linear(5, 3)}))


def test_another_name_is_pointed_out_and_mended_by_a_rename(tmp_path):
    path = saved(under("module.", trained(named("linear")).state_dict()), tmp_path / "x.pt")
    near = (
        r"it lacks 0.fc.weight \(3, 5\) \(nearest: module.0.linear.weight\).*it holds module.0.linear.weight \(3, 5\)"
    )
    with pytest.raises(InputError, match=near + ".*--rename OLD=NEW"):
        loaded(named("fc"), path)
    model = loaded(named("fc"), path, rename=["linear=fc"])
    assert torch.equal(model[0]["fc"].weight, trained(named("linear"))[0]["linear"].weight)
    for text, message in {
        "linear": "OLD=NEW is needed",
        "lin=fc": "no tensor of the file has 'lin' in its name",
        "linear=stem": "two tensors of the file would have one name",
    }.items():
        with pytest.raises(InputError, match=f"--rename '{text}': {message}"):
            loaded(named("fc"), path, rename=[text])


def test_another_network_is_refused_with_shapes_and_names(tmp_path):
    path = saved({"net": STATE, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"2.weight is \(3, 5\), the model needs \(7, 5\);.*--model-arg KEY=VALUE"):
        loaded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 7)), path)
    with pytest.raises(
        InputError, match=r"needs conv.weight \(2, 1, 3, 3\).*holds net \(4 tensors\), such as net.0.weight"
    ):
        loaded(lambda: nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3)}), path)


def test_the_nearest_name_is_one_of_the_same_shape(tmp_path):
    def make(*names):
        return nn.ModuleDict(dict(zip(names, [nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)], strict=True)))

    path = saved(make("fc", "body", "old_stem").state_dict(), tmp_path / "x.pt")
    near = r"stem.weight \(4, 3\) \(nearest: fc.weight\), stem.bias .*, head.weight .* \(nearest: old_stem.weight\)"
    with pytest.raises(InputError, match=near):
        loaded(lambda: make("stem", "body", "head"), path)


def test_former_names_of_torch_layers_fit(tmp_path):
    """Weight normalization stored weight_g and weight_v before it was a parametrization; torch's loading knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        former = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    model = loaded(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))), saved(former.state_dict(), tmp_path / "x")
    )
    torch.testing.assert_close(model(torch.ones(2, 4)), former(torch.ones(2, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int8), r"2.weight is stored as torch.int8 \(quantized\?\)"),
        (lambda t: t.to(torch.cfloat), "2.weight is complex, the model's is real"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized weights"),
    ],
)
def test_weights_that_would_lose_something_are_refused(change, message, tmp_path):
    path = saved({**STATE, "2.weight": change(STATE["2.weight"])}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        loaded(build, path)


def test_half_precision_and_double_are_read_as_they_are(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        path = saved({k: v.to(dtype) for k, v in STATE.items()}, tmp_path / "x.pt")
        model = loaded(lambda: build().double(), path)
        assert torch.equal(model[0].weight, STATE["0.weight"].to(dtype).double())
