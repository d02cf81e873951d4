"""Alignment of transformers: planted symmetries come back, what is allowed is found, what is not is left alone."""

import functools

import pytest
import torch
from attention_cases import Attention
from torch import nn
from torch.testing import assert_close
from transformer_cases import GPT, Llama, problem, vit

import landscape
from landscape import Problem
from landscape.errors import InputError
from landscape.invariance.feature_trace import feature_spaces
from landscape.random import stream
from landscape.surfaces import alignment
from landscape.surfaces.alignment import align, outputs_at, permutable
from landscape.surfaces.matching.features import FeatureGroup, polar
from landscape.surfaces.matching.heads import HeadGroup
from landscape.surfaces.matching.units import random_cycle
from trainers.models.vit import VisionTransformer

CASES = {
    "vit": vit,
    "gpt": GPT,
    "gpt, tied head": functools.partial(GPT, tied=True),
    "gpt, RMSNorm": functools.partial(GPT, norm=nn.RMSNorm),
    "gpt, no gains": functools.partial(GPT, norm=functools.partial(nn.LayerNorm, elementwise_affine=False)),
    "gpt, RMSNorm, tied head": functools.partial(GPT, norm=nn.RMSNorm, tied=True),
    "llama": Llama,
}


def tensors_of(one):
    return {**dict(one.model.named_parameters()), **dict(one.model.named_buffers())}


def moved_by(one, groups, seed=3):
    """The network after a random member of every group, three times over, as a Problem of its own."""
    tensors = {n: t.detach().clone() for n, t in tensors_of(one).items()}
    for turn in range(3):  # an odd number: two of two would be the identity
        for i, group in enumerate(groups):
            tensors = group.random(tensors, stream(seed, f"member {i} {turn}"))
    weights = one.parameters.flatten([tensors[n] for n in one.parameters.names])
    return one.relocated(weights)


@pytest.mark.parametrize("name", CASES)
def test_a_planted_symmetry_comes_back(name):
    one = problem(CASES[name])
    groups, rejected = permutable(one)
    assert rejected == []
    two = moved_by(one, groups)
    assert_close(two.loss(), one.loss(), rtol=1e-11, atol=0)
    assert float((two.weights - one.weights).norm() / one.weights.norm()) > 0.5
    assert landscape.path(one, two, points=5).barrier > 1e-3
    found = align(one, two)
    assert found.facts["converged"]
    assert found.facts["output_change"] < 1e-10
    assert float((found.weights - one.weights).norm() / one.weights.norm()) < 1e-9
    path = landscape.path(one, two, points=5, aligned=True)
    assert path.barrier < 1e-9
    assert path.distance < 1e-9


def wide():
    """Too few parameters that no other group touches (16 + 5 + 2) to fix 32 features: that takes several turns."""
    return VisionTransformer((1, 8, 8), 4, 32, 2, 4, 48, 5)


def test_a_stream_that_the_embedding_does_not_fix():
    one = problem(wide)
    groups, _ = permutable(one)
    found = align(one, moved_by(one, groups))
    assert float((found.weights - one.weights).norm() / one.weights.norm()) < 1e-9


def test_single_precision_and_two_seeds():
    one, two = problem(vit, 0, torch.float32), problem(vit, 1, torch.float32)
    found = align(one, two)
    assert found.weights.dtype == torch.float32
    assert found.facts["output_change"] < 1e-4
    assert found.facts["distance"][1] < 0.9 * found.facts["distance"][0]
    groups, _ = permutable(one)
    back = align(one, moved_by(one, groups))
    assert float((back.weights - one.weights).norm() / one.weights.norm()) < 1e-5


class WrittenRMSNorm(nn.Module):
    """As Llama's in transformers: written out, and in single precision."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_a_norm_that_is_written_out_in_single_precision():
    one = problem(functools.partial(GPT, norm=WrittenRMSNorm))
    groups, rejected = permutable(one)
    assert rejected == []
    assert [g.units for g in groups if isinstance(g, FeatureGroup) and g.space.orthogonal] == [8]
    found = align(one, moved_by(one, groups))
    assert float((found.weights - one.weights).norm() / one.weights.norm()) < 1e-9


def test_every_trial_order_moves_everything():
    """Of two units a random order is the old one half of the time, and would confirm what is no symmetry."""
    for n in (2, 3, 7):
        for seed in range(20):
            order = random_cycle(n, stream(seed, "cycle"))
            assert sorted(order) == list(range(n))
            assert (order != range(n)).all()


def test_a_cache_that_begins_empty():
    class Caching(GPT):
        def forward(self, tokens):
            x = super().forward(tokens)
            return torch.cat([torch.tensor([]).to(x), x], -1)

    assert any(isinstance(g, FeatureGroup) and g.space.orthogonal for g in permutable(problem(Caching))[0])


# -- what is allowed ---------------------------------------------------------------------------------------------------


def kinds(make):
    groups, rejected = permutable(problem(make))
    assert rejected == []
    spaces = [g.space for g in groups if isinstance(g, FeatureGroup)]
    heads = [g for g in groups if isinstance(g, HeadGroup)]
    return sorted((s.size, s.orthogonal, s.centered, s.signs) for s in spaces), [(h.units, h.trade) for h in heads]


def test_what_passes_through_each_kind_of_transformer():
    hidden, heads = [(16, False, False, "none")] * 2, [(2, True)] * 2
    assert kinds(GPT) == ([(8, True, True, "none"), *hidden], heads)
    assert kinds(CASES["gpt, tied head"]) == ([(8, False, False, "common"), *hidden], heads)
    assert kinds(CASES["gpt, RMSNorm"]) == ([(8, True, False, "none"), *hidden], heads)
    assert kinds(CASES["gpt, RMSNorm, tied head"]) == ([(8, False, False, "each"), *hidden], heads)
    assert kinds(vit) == ([(12, True, True, "none"), *[(20, False, False, "none")] * 2], [(3, True)] * 2)
    assert kinds(Llama) == ([(10, False, False, "none")] * 2 + [(12, True, False, "none")], heads)


def change(make, space, q):
    """Relative change of the outputs when the features of a space are mapped by q."""
    one = problem(make)
    group = FeatureGroup(space, {n: t.detach() for n, t in one.model.named_parameters()})
    tensors = {n: t.detach().double() for n, t in tensors_of(one).items()}
    before, after = outputs_at(one, tensors), outputs_at(one, group.mapped(tensors, q))
    return float((after - before).abs().max() / before.abs().max())


def stream_of(make):
    """The residual stream: the space that most parameters share."""
    one = problem(make)
    return max(feature_spaces(one.model, one.few_examples(2)), key=lambda space: len(space.tensors()))


def random_orthogonal(n):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q


def test_what_does_not_pass_changes_the_outputs():
    """The rule is sharp: with LayerNorm a matrix that moves the ones fails, and so do single signs."""
    free, centered = stream_of(CASES["gpt, RMSNorm"]), stream_of(GPT)
    signs = torch.diag(torch.tensor([1.0, -1, 1, 1, -1, 1, 1, 1], dtype=torch.float64))
    assert change(CASES["gpt, RMSNorm"], free, random_orthogonal(8)) < 1e-12
    assert change(GPT, centered, -torch.eye(8, dtype=torch.float64)) < 1e-12
    assert change(GPT, centered, random_orthogonal(8)) > 1e-2
    assert change(GPT, centered, signs) > 1e-2
    rms, layer = (stream_of(CASES[n]) for n in ("gpt, RMSNorm, tied head", "gpt, tied head"))
    assert change(CASES["gpt, RMSNorm, tied head"], rms, signs) < 1e-12
    assert change(CASES["gpt, tied head"], layer, -torch.eye(8, dtype=torch.float64)) < 1e-12
    assert change(CASES["gpt, tied head"], layer, signs) > 1e-2
    assert change(CASES["gpt, RMSNorm, tied head"], rms, random_orthogonal(8)) > 1e-2


def test_gains_that_moved_into_the_layers_that_read_them_come_back():
    """g n + b read by W is f (g n + b) read by W diag(1/f): of another gain, but one function, beside a rotation."""
    one = problem(GPT)
    groups, _ = permutable(one)
    two = moved_by(one, groups)
    for norms, readers in (("norm1", ("attention.query", "attention.key", "attention.value")), ("norm2", ("linear1",))):
        for block in two.model.blocks:
            factors = torch.rand(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
            with torch.no_grad():
                for tensor in (getattr(block, norms).weight, getattr(block, norms).bias):
                    tensor.mul_(factors)
                for name in readers:
                    block.get_submodule(name).weight.div_(factors)
    batch = next(iter(one.batches))
    scaled = Problem(two.model, nn.CrossEntropyLoss(), [(batch.args[0], batch.target)])
    assert_close(scaled.loss(), one.loss(), rtol=1e-11, atol=0)
    assert float((scaled.weights - two.weights).norm()) > 1
    found = align(one, scaled)
    assert found.facts["turned"] == 8
    assert float((found.weights - one.weights).norm() / one.weights.norm()) < 1e-9


def test_a_gain_of_zero_leaves_permutations():
    one = problem(GPT)
    with torch.no_grad():
        one.model.norm.weight[3] = 0
    groups, _ = permutable(Problem(one.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in one.batches]))
    stream_group = next(g for g in groups if isinstance(g, FeatureGroup) and "norm.weight" in g.tensors())
    assert not stream_group.space.orthogonal
    assert stream_group.space.signs == "common"


@pytest.mark.parametrize("seed", range(4))
def test_queries_that_share_their_keys_move_together(seed):
    """Every trial member moves what it tries: of two units half of all orders are the identity."""
    torch.manual_seed(0)
    model = Attention(size=2, heads=4, key_heads=1, width=8).double()
    inputs = torch.randn(6, 4, 3).double()
    one = Problem(model, nn.MSELoss(), [(inputs, torch.randn(6, 2).double())])
    for group in permutable(one, seed)[0]:
        moved = moved_by(one, [group], seed + 1)
        assert float((moved.weights - one.weights).norm()) > 0.1
        assert_close(moved.loss(), one.loss(), rtol=1e-11, atol=0)


def test_heads_of_different_rank_do_not_trade_places():
    """Whatever the seed: with two heads half of all orders are the identity."""

    class Sloped(GPT):
        def forward(self, tokens):
            for block in self.blocks:
                block.attention.forward = functools.partial(sloped, block.attention)
            return super().forward(tokens)

    def sloped(attention, x, *_):
        q, k, v = (
            f(x).unflatten(2, (2, -1)).transpose(1, 2) for f in (attention.query, attention.key, attention.value)
        )
        distances = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        scores = q @ k.mT - distances.abs() * torch.tensor([0.5, 2.0], dtype=x.dtype)[:, None, None]
        return attention.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))

    one = problem(Sloped)
    for seed in range(4):
        assert [g.trade for g in permutable(one, seed)[0] if isinstance(g, HeadGroup)] == [False, False]


def test_a_norm_that_is_called_twice():
    """Its gain is mapped once."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.norm = nn.LayerNorm(6)

        def forward(self, x):
            x = self.embed(x)
            for _ in range(2):
                x = self.norm(x + self.layer(x))
            return self.head(x)

    torch.manual_seed(0)
    model = Twice().double()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    one = Problem(model, nn.MSELoss(), [(torch.randn(6, 3).double(), torch.randn(6, 2).double())])
    groups, rejected = permutable(one)
    assert [g.units for g in groups] == [6]
    assert rejected == []
    found = align(one, moved_by(one, groups))
    assert float((found.weights - one.weights).norm()) < 1e-9


def test_post_norm_and_packed_attention_of_torch():
    """A norm whose output is added to something lets permutations pass; heads are found in packed weights."""

    class Encoder(nn.Module):
        def __init__(self, norm_first):
            super().__init__()
            options = {"activation": "gelu", "batch_first": True, "norm_first": norm_first}
            self.embed, self.layer = nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 12, **options)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.norm(self.layer(self.embed(x)))[:, 0])

    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 4, 3).double(), torch.tensor([0, 1, 0, 1, 1, 0])
    for norm_first in (True, False):
        model = Encoder(norm_first).double()
        nn.init.uniform_(model.layer.self_attn.in_proj_bias, -0.5, 0.5)
        one = Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
        groups, _ = permutable(one)
        spaces = sorted((g.units, g.space.orthogonal) for g in groups if isinstance(g, FeatureGroup))
        # Of the post-norm block: what enters it, what lies between its norms, and what the last norm reads.
        expected = [(8, True), (12, False)] if norm_first else [(8, False), (12, False)]
        assert spaces == expected
        assert any(isinstance(g, HeadGroup) and g.trade for g in groups)
        found = align(one, moved_by(one, groups))
        assert float((found.weights - one.weights).norm()) < 1e-9


# -- matching ----------------------------------------------------------------------------------------------------------


def test_polar_factor_is_the_nearest_orthogonal_matrix():
    c = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = polar(c)
    assert_close(q @ q.mT, torch.eye(5, dtype=torch.float64))
    # Q'C is symmetric and positive: the condition of a maximum of tr Q'C over all orthogonal matrices.
    product = q.mT @ c
    assert_close(product, product.mT)
    assert torch.linalg.eigvalsh(product).min() > 0
    low = c[:, :2] @ c[:2]
    assert_close(polar(low).mT @ low, (polar(low).mT @ low).mT)
    assert_close(polar(torch.zeros(4, 4, dtype=torch.float64)), torch.eye(4, dtype=torch.float64))


def test_heads_are_matched_by_the_invertible_map_between_them():
    """Of two seeds no map is exact: the one that is found is no farther than the identity and the best rotation."""
    one, two = problem(GPT, 0), problem(GPT, 1)
    groups, _ = permutable(two)
    tensors = [{n: t.detach() for n, t in tensors_of(p).items()} for p in (one, two)]
    for group in (g for g in groups if isinstance(g, HeadGroup)):
        matched, _ = group.matched(*tensors)
        gaps = [
            sum(float((t[n] - tensors[0][n]).square().sum()) for n in group.tensors()) for t in (matched, tensors[1])
        ]
        assert gaps[0] < gaps[1]
        assert float((outputs_at(two, matched) - outputs_at(two, tensors[1])).abs().max()) < 1e-11


def test_a_map_that_changes_the_function_is_refused(monkeypatch):
    """The nearest weights of all are the first network's own, and no symmetry: the outputs have the last word."""

    class Swap:
        units = 1

        def matched(self, target, moving):
            return {**moving, **target}, 1

    one, two = problem(vit, 0), problem(vit, 1)
    monkeypatch.setattr(alignment, "permutable", lambda *_: ([Swap()], []))
    with pytest.raises(InputError, match="did not keep what the network computes"):
        align(one, two)
