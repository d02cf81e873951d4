"""Lion and Muon: their steps by hand and beside torch's, which parameters they take, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landscape.errors import InputError
from trainers import train
from trainers.loop.base import base_optimizer, hidden_matrices, in_model_order
from trainers.loop.settings import Settings
from trainers.models import build_model
from trainers.optimizers.lion import Lion
from trainers.optimizers.muon import Muon, orthogonalized


def tensors(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def stepped(optimizer, parameters, gradients):
    """The parameters after a step along each of these lists of gradients."""
    for several in gradients:
        for p, g in zip(parameters, several, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def test_lion_moves_every_entry_by_the_learning_rate():
    """Two steps of one entry by hand: the second gradient is too small to turn the interpolated momentum around."""
    p = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = Lion([p], lr=0.1, betas=(0.9, 0.5), weight_decay=0.5)
    gradients = [[torch.tensor([3.0, 0.0], dtype=torch.float64)], [torch.tensor([-10.0, 1.0], dtype=torch.float64)]]
    (after,) = stepped(optimizer, [p], gradients)
    # m is (1.5, 0) after the first step; 0.9 x 1.5 - 0.1 x 10 is above 0 still.
    expected = [(2.0 * 0.95 - 0.1) * 0.95 - 0.1, -1.0 * 0.95 * 0.95 - 0.1]
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (9, 2)])
def test_orthogonalized_keeps_singular_vectors_and_levels_singular_values(shape):
    (matrix,) = tensors(shape)
    matrix[0] *= 5
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.T @ orthogonalized(matrix) @ v.T
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-12)
    assert s.max() / s.min() > 3, "the test needs values to level"
    assert diagonal.diagonal().min() > 0.65
    assert diagonal.diagonal().max() < 1.25
    torch.testing.assert_close(orthogonalized(1e6 * matrix), orthogonalized(matrix), rtol=1e-10, atol=1e-12)
    assert not orthogonalized(torch.zeros(shape)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought Muon")
def test_on_matrices_the_step_is_torchs():
    shapes = ((6, 10), (12, 5))
    start, *gradients = [tensors(*shapes, seed=s, dtype=torch.float32) for s in range(4)]
    ends = []
    for kind, options in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        parameters = [nn.Parameter(t.clone()) for t in start]
        ends.append(stepped(kind(parameters, lr=0.01, weight_decay=0.3, **options), parameters, gradients))
    for ours, theirs, before in zip(*ends, start, strict=True):
        # theirs iterates in bfloat16, which has eight bits
        torch.testing.assert_close(ours - before, theirs - before, rtol=0.02, atol=0.02 * float((ours - before).norm()))
        assert not torch.allclose(ours, before)


def test_the_other_parameters_take_adamws_step():
    start, *gradients = [tensors((6, 10), (5,), seed=s) for s in range(4)]
    ends = []
    for kind, options in ((Muon, {"orthogonal": False}), (torch.optim.AdamW, {})):
        parameters = [nn.Parameter(t.clone()) for t in start]
        ends.append(stepped(kind(parameters, lr=0.01, weight_decay=0.3, **options), parameters, gradients))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_convolution_is_the_matrix_of_its_filters_in_any_memory_format():
    (weights,), (gradient,) = tensors((6, 3, 2, 2)), tensors((6, 3, 2, 2), seed=1)
    ends = []
    for form in (lambda t: t, lambda t: t.contiguous(memory_format=torch.channels_last), lambda t: t.flatten(1)):
        p = nn.Parameter(form(weights.clone()))
        (end,) = stepped(Muon([p]), [p], [[form(gradient)]])
        ends.append(end.reshape(6, -1))
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


@pytest.mark.parametrize("kind", [Lion, Muon])
def test_a_parameter_without_gradient_stays_and_a_closure_is_called(kind):
    p, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = kind([p, other], lr=0.1, weight_decay=0.5)

    def closure():
        loss = (p * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 10.0
    assert torch.equal(other, torch.ones(2, 2))
    assert not torch.equal(p, torch.ones(2, 2))


def test_muon_takes_hidden_weights_and_leaves_the_rest_to_adamw():
    model = build_model("small-cnn", classes=10, input_shape=(1, 8, 8))
    optimizer = base_optimizer(Settings(base="muon").resolved(None), model)
    names = {id(p): n for n, p in model.named_parameters()}
    parts = [({names[id(p)] for p in g["params"]}, g["orthogonal"], g["weight_decay"]) for g in optimizer.param_groups]
    last = list(model.named_parameters())[-2][0]
    weights = {n for n, p in model.named_parameters() if p.dim() > 1}
    assert parts == [(weights - {last}, True, 0.01), ({last}, False, 0.01), (set(names.values()) - weights, False, 0.0)]


def test_muon_leaves_embeddings_to_adamw():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7))
    optimizer = base_optimizer(Settings(base="muon").resolved(None), model)
    assert [p is model[1].weight for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]] == [True]


def test_muon_takes_the_last_block_below_a_tied_head():
    model = build_model("gpt-small", classes=11, input_shape=(4,), dim=8, depth=1, heads=2)
    hidden = {n for n, p in model.named_parameters() if any(p is m for m in hidden_matrices(model))}
    assert hidden == {n for n, p in model.blocks.named_parameters(prefix="blocks") if p.dim() == 2}


def test_muon_without_a_hidden_layer_is_refused():
    with pytest.raises(InputError, match="muon orthogonalizes the weights of hidden layers and the network has none"):
        base_optimizer(Settings(base="muon").resolved(None), nn.Linear(3, 2))


@pytest.mark.parametrize("base", ["sgd", "adamw", "lion", "muon"])
def test_the_stored_state_is_numbered_as_the_model_has_its_parameters(base):
    model = build_model("small-cnn", classes=10, input_shape=(1, 8, 8))
    settings = Settings(base=base).resolved(None)
    optimizer = base_optimizer(settings, model)
    stepped(optimizer, list(model.parameters()), [[torch.randn_like(p) for p in model.parameters()]])
    state = in_model_order(optimizer.state_dict(), model, settings.plain)["state"]
    for i, p in enumerate(model.parameters()):
        held = state[i].get("momentum_buffer", state[i].get("exp_avg"))
        assert held.shape == p.shape
        assert held is optimizer.state[p].get("momentum_buffer", optimizer.state[p].get("exp_avg"))


@pytest.mark.parametrize("base", ["lion", "muon"])
def test_every_method_takes_it_as_base(base):
    settings = {"data": "toy2d:n=200", "model": "mlp:hidden=8", "epochs": 2, "batch_size": 64}
    run = train("sam", base=base, **settings)
    assert run.settings.lr == {"lion": 0.0001, "muon": 0.001}[base]
    assert train(base, **settings).history != run.history
    with pytest.raises(InputError, match=f"--momentum belongs to sgd, the base optimizer is {base}"):
        train("sam", base=base, momentum=0.5, **settings)
