"""Invertible maps of attention: found in every form of attention, restricted or refused where they are no symmetry."""

import copy
import functools

import pytest
import torch
from attention_cases import Encoder, interleaved, mapped_by_hand, network, rotary, tokens
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.invariance.rescaling import find
from landscape.problem.parameters import Parameters
from landscape.random import stream


def assert_kept(model, x, symmetries, seed=0):
    """Outputs at a random member of the maps alone, by torch's own functional_call."""
    w, layout = symmetries.parameters.read(model), symmetries.parameters
    maps = symmetries.sample_maps(stream(seed, "maps"), 0.3, 3.0)
    moved = symmetries.apply(w, torch.ones(symmetries.dimension, dtype=torch.float64), maps=maps).weights
    state = dict(zip(layout.names, layout.unflatten(moved), strict=True))
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        before, after = model(x), torch.func.functional_call(model, state, (x,))
    # 1e-11 of the largest output: the matrices have condition 10.
    assert_close(after, before, rtol=0, atol=1e-11 * before.abs().max().item())
    assert (moved - w).abs().max() > 1e-2 * w.abs().max()
    return moved


def kinds(symmetries):
    return sorted((h.tensors(dual=False), h.tensors(dual=True), len(h.free), len(h.planes)) for h in symmetries.heads)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["sdpa", "written", "einsum"])
def test_own_attention_with_separate_layers(form, bias):
    model, x = network(form=form, bias=bias), tokens()
    symmetries = find(model, x)
    assert not symmetries.rejected_heads
    q = ("q.weight", "q.bias") if bias else ("q.weight",)
    k, v = (tuple(n.replace("q", letter) for n in q) for letter in "kv")
    assert kinds(symmetries) == sorted(2 * [(q, k, 4, 0)] + 2 * [(v, ("o.weight",), 4, 0)])
    assert all(h.dimension == 16 and h.whole and h.residual <= 1e-12 for h in symmetries.heads)
    assert_kept(model, x, symmetries)
    assert "heads: 4 x 4 matrices between q.weight" in str(symmetries)


def test_a_fused_layer():
    model, x = network(fused=True), tokens()
    symmetries = find(model, x)
    fused = ("qkv.weight", "qkv.bias")
    assert kinds(symmetries) == sorted(2 * [(fused, fused, 4, 0)] + 2 * [(fused, ("o.weight",), 4, 0)])
    assert_kept(model, x, symmetries)


def test_multihead_attention_of_torch():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    model, x = Encoder(layer).double(), tokens()
    nn.init.uniform_(layer.in_proj_bias, -0.5, 0.5)
    symmetries = find(model, x)
    packed = ("layer.in_proj_weight", "layer.in_proj_bias")
    assert kinds(symmetries) == sorted(2 * [(packed, packed, 4, 0)] + 2 * [(packed, ("layer.out_proj.weight",), 4, 0)])
    assert_kept(model, x, symmetries)


def test_keys_and_values_of_another_width():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=3, vdim=3)
            self.query = nn.Parameter(torch.randn(1, 2, 8, dtype=torch.float64))

        def forward(self, x):
            return torch.tanh(self.attention(self.query.expand(len(x), -1, -1), x, x)[0]).flatten(1)

    model, x = Across().double(), tokens()
    nn.init.uniform_(model.attention.in_proj_bias, -0.5, 0.5)
    symmetries = find(model, x)
    bias = "attention.in_proj_bias"
    q, k, v = ((f"attention.{letter}_proj_weight", bias) for letter in "qkv")
    assert kinds(symmetries) == sorted(2 * [(q, k, 4, 0)] + 2 * [(v, ("attention.out_proj.weight",), 4, 0)])
    assert_kept(model, x, symmetries)


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer_of_torch(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=norm_first)
    model, x = Encoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).double(), tokens()
    symmetries = find(model, x)
    assert len(symmetries.heads) == 2 * (2 + 2)
    assert_kept(model, x, symmetries)


@pytest.mark.parametrize("form", ["gqa", "written", "sdpa"])
def test_grouped_heads_share_one_map(form):
    model, x = network(heads=4, key_heads=2, form=form, bias=False), tokens()
    symmetries = find(model, x)
    assert kinds(symmetries) == sorted(
        2 * [(("q.weight",), ("k.weight",), 4, 0)] + 2 * [(("v.weight",), ("o.weight",), 4, 0)]
    )
    (pair, *_) = (h for h in symmetries.heads if "q.weight" in h.tensors(dual=False))
    assert len([p for p in pair.parts if p.tensor == "q.weight"]) == 2  # two heads of queries to one of keys
    assert_kept(model, x, symmetries)


@pytest.mark.parametrize("form", ["sdpa", "written"])
@pytest.mark.parametrize("position", [rotary, interleaved])
def test_rotary_embeddings_leave_scaled_rotations(position, form):
    model, x = network(form=form, position=functools.partial(position, width=4)), tokens()
    symmetries = find(model, x)
    assert not symmetries.rejected_heads
    queries = [h for h in symmetries.heads if h.planes]
    planes = ((0, 2), (1, 3)) if position is rotary else ((0, 1), (2, 3))
    assert [h.planes for h in queries] == 2 * [planes]
    assert [h.free for h in queries] == [(), ()]
    assert [h.dimension for h in queries] == [4, 4]
    assert len([h for h in symmetries.heads if h.whole]) == 2  # values
    assert_kept(model, x, symmetries)
    assert "2 planes of rotary embeddings" in str(symmetries)


def test_partly_rotary_embeddings_leave_matrices_of_the_rest():
    model, x = network(size=6, position=functools.partial(rotary, width=2)), tokens()
    symmetries = find(model, x)
    queries = [h for h in symmetries.heads if h.planes]
    assert [h.planes for h in queries] == 2 * [((0, 1),)]
    assert_kept(model, x, symmetries)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": nn.RMSNorm},
        {"norm": nn.LayerNorm},
        {"form": "cosine"},
        {"form": "linear"},
        {"norm": nn.RMSNorm, "position": functools.partial(rotary, width=4)},
    ],
)
def test_normalized_queries_and_keys_have_no_maps(options):
    model, x = network(**options), tokens()
    symmetries = find(model, x)
    assert {h.tensors(dual=False) for h in symmetries.heads} == {("v.weight", "v.bias")}
    assert not symmetries.rejected_heads
    assert_kept(model, x, symmetries)


def test_a_gate_of_values_has_no_maps():
    symmetries = find(network(form="gated"), tokens())
    assert {h.tensors(dual=False) for h in symmetries.heads} == {("q.weight", "q.bias")}


class Showing(nn.Module):
    """The queries are an output, too."""

    def __init__(self):
        super().__init__()
        self.inner = network(size=1)

    def forward(self, x):
        return self.inner(x), self.inner.q(torch.tanh(self.inner.embed(x)))


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.k, self.v = (nn.Linear(3, 4) for _ in range(4))

    def forward(self, x):
        scores = (self.a(x) + self.b(x)) @ self.k(x).mT
        return torch.softmax(scores, -1) @ torch.tanh(self.v(x))


@pytest.mark.parametrize("model", [Showing, Summed])
def test_queries_that_are_read_elsewhere_or_summed_are_refused_before_they_are_tried(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        symmetries = find(model().double(), tokens())
    assert not [h for h in symmetries.heads if any("k." in n for n in h.tensors(dual=True))]
    assert not symmetries.rejected_heads


def test_tied_queries_and_keys_have_no_maps():
    model = network()
    model.k = model.q
    symmetries = find(model, tokens())
    assert {h.tensors(dual=False) for h in symmetries.heads} == {("v.weight", "v.bias")}


def test_tied_values_and_keys_share_a_map_with_queries_and_outputs():
    model, x = network(), tokens()
    model.v = model.k
    symmetries = find(model, x)
    assert kinds(symmetries) == 2 * [(("q.weight", "q.bias", "o.weight"), ("k.weight", "k.bias"), 4, 0)]
    assert_kept(model, x, symmetries)


def test_one_block_that_is_used_twice_has_its_maps_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)
            self.embed = nn.Linear(3, 8)

        def forward(self, x):
            h = self.embed(x)
            for _ in range(2):
                h = torch.tanh(h + self.layer(h, h, h, need_weights=False)[0])
            return h.flatten(1)

    model, x = Twice().double(), tokens()
    symmetries = find(model, x)
    assert len(symmetries.heads) == 4
    assert_kept(model, x, symmetries)


def test_parameters_outside_the_vector_stay():
    model, x = network(), tokens()
    model.k.weight.requires_grad_(False)
    assert {h.tensors(dual=False) for h in find(model, x).heads} == {("v.weight", "v.bias")}
    chosen = find(network(), x, parameters=Parameters.of(network(), ["q", "k", "v"]))
    assert {h.tensors(dual=False) for h in chosen.heads} == {
        ("q.weight", "q.bias")
    }  # the layer that reads v is outside


def test_a_map_that_the_network_does_not_confirm_is_set_aside():
    class Hidden(nn.Module):
        """A second use of the queries that no function of torch shows to the trace."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch._C.DisableTorchFunction():
                seen = self.model.q.weight.detach()[:1, :2].clone()
            return self.model(x) + seen

    symmetries = find(Hidden(network()), tokens())
    assert len(symmetries.rejected_heads) == 1
    assert len(symmetries.heads) == 3
    assert symmetries.rejected_heads[0].residual > 1e-3
    assert "1 heads rejected" in str(symmetries)
    assert symmetries.summary()["rejected_heads"][0]["heads"] == 1


def test_maps_by_hand_are_members():
    """The group is as large as what can be mapped by hand: outputs stay, and so does what the finder maps."""
    model, x = network(heads=4, key_heads=2), tokens()
    state = mapped_by_hand(model)
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    with torch.no_grad():
        assert_close(other(x), model(x), rtol=0, atol=1e-12)
    assert kinds(find(other, x)) == kinds(find(model, x))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "qwen3"])
def test_networks_of_hugging_face(kind, padded):
    transformers = pytest.importorskip("transformers")
    shared = {"vocab_size": 17, "attn_implementation": "sdpa"}
    wide = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    grouped = {**wide, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config = {
        "bert": lambda: transformers.BertConfig(**shared, **wide, num_labels=3),
        "gpt2": lambda: transformers.GPT2Config(**shared, n_embd=8, n_layer=2, n_head=2, num_labels=3, pad_token_id=0),
        "llama": lambda: transformers.LlamaConfig(**shared, **grouped),
        "qwen3": lambda: transformers.Qwen3Config(**shared, **grouped),
    }[kind]()
    classes = {"bert": transformers.AutoModelForSequenceClassification}
    model = classes.get(kind, transformers.AutoModelForCausalLM).from_config(config).double().eval()
    ids = torch.randint(1, 17, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    symmetries = find(model, {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids})
    whole, planes = ([h for h in symmetries.heads if h.whole], [h for h in symmetries.heads if h.planes])
    assert not symmetries.rejected_heads
    assert (len(whole), len(planes)) == {"bert": (8, 0), "gpt2": (8, 0), "llama": (4, 4), "qwen3": (4, 0)}[kind]
    assert all(h.residual <= 1e-12 for h in symmetries.heads)


def test_find_is_public():
    assert landscape.rescaling.find is find
