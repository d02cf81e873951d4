"""The seam between methods and the rest: statistics, lent weights, parts of the batch, counts, draws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, Context, MethodOptimizer, Task
from trainers.method import network


def conv_net(norm=nn.BatchNorm2d, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(2, 4, 3), norm(4, **options), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)]
        return nn.Sequential(*layers).double()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def task(model, **options):
    return Task(model, nn.CrossEntropyLoss(reduction="none"), **options)


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_frozen_statistics_keep_every_buffer_and_the_normalization(norm, momentum):
    options = {"track_running_stats": True, "momentum": momentum}
    if norm is nn.InstanceNorm2d and momentum is None:
        pytest.skip("InstanceNorm has no cumulative average")
    model, x = conv_net(norm, **options), batch()[0]
    expected = conv_net(norm, **options)(x)
    before = {n: b.clone() for n, b in model.named_buffers()}
    layers = network.statistics_of(model)
    with network.frozen_statistics(layers):
        with network.frozen_statistics(layers):
            model(x)
        outputs = model(x)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-14)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model(x)
    assert any(not torch.equal(b, before[n]) for n, b in model.named_buffers()), "frozen for good"


def test_a_layer_in_evaluation_mode_stays_in_it():
    model, x = conv_net(), batch()[0]
    model[1].eval()
    expected = model(x)
    with network.frozen_statistics(network.statistics_of(model)):
        torch.testing.assert_close(model(x), expected)
    assert not model[1].training


def test_the_first_pass_moves_the_statistics_unless_told_otherwise():
    for told, moving in (((None, None), 0), ((False, True), 1), ((True, False), 0), ((False, None), 1)):
        model = conv_net()
        step = task(model).step(batch())
        for i, statistics in enumerate(told):
            before = model[1].num_batches_tracked.item()
            step.backward(statistics=statistics)
            assert (model[1].num_batches_tracked.item() > before) == (i == moving), told


def test_groups_average_the_statistics_of_their_batches():
    model, x = conv_net(), batch()[0]
    from trainers import METHODS

    METHODS["sgd"]().gradient(task(model, group_size=3).step(batch()), {})
    hidden = model[0](x)
    variances = [h.var((0, 2, 3)) for h in hidden.split(3)]
    torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * (variances[0] + variances[1]) / 2)
    torch.testing.assert_close(model[1].running_mean, 0.1 * hidden.mean((0, 2, 3)))
    assert model[1].num_batches_tracked == 1


# -- other weights -----------------------------------------------------------------------------------------------------


def test_lent_weights_compute_and_leave_no_trace():
    model, other, (x, y) = conv_net(), conv_net(), batch()
    with torch.no_grad():
        for tensor in [*other.parameters(), other[1].running_mean]:
            tensor.add_(0.1)
    own = task(model)
    before = [(n, t, t.detach().clone()) for n, t in model.state_dict(keep_vars=True).items()]
    found = own.step((x, y)).outputs_with(task(other).named_tensors())
    torch.testing.assert_close(found, other.eval()(x))
    assert not found.requires_grad
    after = model.state_dict(keep_vars=True)
    assert all(after[n] is t and torch.equal(t, value) for n, t, value in before)
    assert all(m.training for m in model.modules())


def test_a_shared_tensor_is_lent_to_all_of_its_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    model = Tied()
    own = Task(model, nn.MSELoss())
    x = torch.randn(5, 4)
    lent = {n: torch.zeros_like(t) for n, t in own.named_tensors().items()}
    assert len(own.parameters) == 3
    torch.testing.assert_close(own.step((x, x)).outputs_with(lent), torch.zeros(5, 4))
    assert model.first.weight is model.second.weight


# -- parts of the batch ------------------------------------------------------------------------------------------------


def test_rows_are_the_chosen_examples_and_their_mean():
    model, (x, y) = conv_net(), batch()
    model.eval()
    step = task(model).step((x, y), indices=torch.arange(6))
    losses = F.cross_entropy(model(x), y, reduction="none")
    rows = step.largest(losses, 2)
    assert set(rows.index.tolist()) == set(losses.argsort(descending=True)[:2].tolist())
    made = step.backward(rows=rows)
    expected = torch.autograd.grad(losses[rows.index].mean(), list(model.parameters()))
    torch.testing.assert_close(step.gradients(), list(expected))
    torch.testing.assert_close(made.losses, losses[rows.index].detach())
    assert not made.losses.requires_grad


def test_samples_are_without_replacement_and_follow_from_seed_and_step():
    own = task(conv_net())

    def draw(seed=0, step=0, name="a"):
        return own.step(batch(), Context(seed=seed, step=step)).sample(4, name).index.tolist()

    assert len(set(draw())) == 4
    assert draw() == draw()
    assert len({tuple(draw(seed, step, name)) for seed in range(3) for step in range(3) for name in "ab"}) > 10


def test_gradients_of_some_parameters_alone():
    model = conv_net()
    step = task(model).step(batch())
    step.backward(inputs=[model[4].weight])
    assert model[0].weight.grad is None
    found = step.gradients()
    assert found[0].abs().max() == 0
    whole = task(conv_net()).step(batch())
    whole.backward()
    torch.testing.assert_close(found[-2], whole.gradients()[-2])


def test_an_objective_replaces_the_loss_and_its_mean_is_taken():
    model, (x, y) = conv_net(), batch()
    step = task(model).step((x, y))
    step.backward(objective=lambda made: made.losses * 2 + made.logits.pow(2).sum(1))
    found = step.gradients()
    twin = conv_net()
    logits = twin(x)
    value = F.cross_entropy(logits, y) * 2 + logits.pow(2).sum(1).mean()
    torch.testing.assert_close(found, list(torch.autograd.grad(value, list(twin.parameters()))))


# -- decay, counts, draws, errors --------------------------------------------------------------------------------------


def test_decay_inside_is_taken_at_the_perturbed_weights():
    model = conv_net()
    coefficients = [0.5] + [0.0] * (len(list(model.parameters())) - 1)
    step, plain = task(model, decay=coefficients).step(batch()), task(conv_net()).step(batch())
    epsilon = [torch.full_like(p, 0.1) for p in step.parameters]
    for one in (step, plain):
        with one.perturbed(epsilon):
            one.backward()
    difference = [a - b for a, b in zip(step.gradients(), plain.gradients(), strict=True)]
    torch.testing.assert_close(difference[0], 0.5 * (model[0].weight.detach() + 0.1))
    assert all(d.abs().max() == 0 for d in difference[1:])


def test_passes_are_counted_by_examples():
    own = task(conv_net())
    step = own.step(batch(), Context())
    step.forward()
    step.backward()
    step.backward(rows=step.sample(2, "x"))
    step.outputs_with(own.named_tensors())
    assert (own.passes.forward, own.passes.backward) == (6 + 6 + 2 + 6, 6 + 2)


def test_equal_masks_in_all_passes_of_a_step_and_new_ones_in_the_next():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    own, logits = task(model), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2):
            step = own.step(batch())
            logits += [step.forward().logits, step.forward().logits]
        free = task(model, same_masks=False).step(batch())
        apart = [free.forward().logits, free.forward().logits]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[2], logits[3])
    assert not torch.equal(logits[0], logits[2])
    assert not torch.equal(*apart)


class Halved(nn.Module):
    """Dropout by the function, which no layer's name tells."""

    def __init__(self):
        super().__init__()
        self.drop_rate = 0.5

    def forward(self, x):
        return nn.functional.dropout(x, self.drop_rate, self.training)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(10, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


@pytest.mark.parametrize("layer", [Halved, Attention])
def test_masks_of_layers_that_are_not_called_dropout_are_equal_too(layer):
    model = nn.Sequential(nn.Unflatten(1, (5, 10)), layer(), nn.Flatten(), nn.Linear(50, 3)).double()
    own = Task(model, nn.CrossEntropyLoss(reduction="none"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step = own.step((torch.randn(6, 50, dtype=torch.float64), torch.arange(6) % 3))
        assert torch.equal(step.forward().logits, step.forward().logits)


def test_a_step_that_one_process_skips_is_skipped_by_all(monkeypatch):
    """WSAM leaves the gradient at w; what overflowed at w + epsilon on the other process is in the flag alone."""

    def of_both(tensor, op=torch.distributed.ReduceOp.SUM):
        if op == torch.distributed.ReduceOp.MAX:
            tensor.fill_(1.0)

    monkeypatch.setattr(torch.distributed, "all_reduce", of_both)
    model = nn.Linear(4, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))  # makes its factor
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    own = Task(model, nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer, scaler=scaler, synchronized=False)
    own.world = 2
    method = METHODS["wsam"]()
    step = own.step((torch.randn(6, 4), torch.arange(6) % 3), sizes=(6, 6))
    method.gradient(step, method.init(own, Context()))
    assert all(p.grad.isnan().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["random-perturbation", "esam", "subset-sam", "rst", "le-sam", "gsam", "xsam", "mesa"])
def test_what_draws_or_follows_a_schedule_is_told_where_training_stands(name):
    """Every step would be the first: the same draws, a radius of 0 for ever."""
    method, model = METHODS[name](), conv_net()
    trained = task(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    state = method.init(trained, Context())
    with pytest.raises(InputError, match="task.step was not told where training stands: give task.step"):
        method.gradient(trained.step(batch()), state)
    method.gradient(trained.step(batch(), Context()), state)


@pytest.mark.parametrize("name", ["sgd", "sam", "k-sam"])
def test_an_autocast_region_around_a_loop_sees_the_weights_of_the_moment(name):
    def trained(outer):
        model = conv_net().float()
        optimizer, method = torch.optim.SGD(model.parameters(), lr=0.1), METHODS[name]()
        made = task(model, precision="bfloat16", optimizer=optimizer)
        state, (x, y) = method.init(made, Context()), batch(12)
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            for i in range(3):
                method.gradient(made.step((x.float(), y), Context(step=i)), state)
                optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(True), trained(False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 2.5}, "m must be a whole number of at least 1, received 2.5"),
        ({"group_size": True}, "must be a whole number of at least 1, received True"),
        ({"group_size": 0}, "must be a whole number of at least 1, received 0"),
        ({"decay": [0.1]}, r"for each of the 6 trainable parameters, received \[0.1\]"),
        ({"decay": [0.1] * 5 + [float("nan")]}, "decay must hold a coefficient of at least 0 for each of the 6"),
        ({"decay": [-0.1] * 6}, "decay must hold a coefficient of at least 0"),
    ],
)
def test_a_task_takes_counts_and_coefficients(options, message):
    with pytest.raises(InputError, match=message):
        task(conv_net(), **options)


@pytest.mark.parametrize("progress", [2.0, -0.1, float("nan"), 50])
def test_progress_is_a_share(progress):
    """Schedules read beyond their ends: LE-SAM's radius came back, RST never ascended."""
    with pytest.raises(InputError, match="progress is the share of the run that is done, from 0 to 1, received"):
        Context(progress=progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": -3}, "total_steps must be a whole number of at least 1, received -3"),
        ({"total_steps": "9"}, "total_steps must be a whole number of at least 1, received '9'"),
        ({"total_steps": 9.5}, "total_steps must be a whole number of at least 1, received 9.5"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number of at least 1, received 0"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, received -1"),
        ({"method": "sam"}, "a method such as METHODS.* is needed, received 'sam'"),
    ],
)
def test_an_optimizer_takes_counts_and_a_method(options, message):
    model = conv_net()
    arguments = {"method": METHODS["sam"](), "model": model, **options}
    with pytest.raises(InputError, match=message):
        MethodOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **arguments)


def test_a_step_within_inference_mode_is_refused():
    own = task(conv_net())
    with torch.inference_mode(), pytest.raises(InputError, match=r"a step within torch.inference_mode\(\)"):
        own.step(batch())


def test_errors_say_what_is_needed():
    x, y = batch()
    with pytest.raises(InputError, match="precision must be one of"):
        task(conv_net(), precision="half")
    with pytest.raises(InputError, match="m must be a whole number of at least 1"):
        task(conv_net(), group_size=0)
    with pytest.raises(InputError, match=r"shape \(6, 3\) for 6 examples"):
        Task(conv_net(), lambda o, t: o).step((x, y)).backward()
    with pytest.raises(InputError, match="the loader gives no indices"):
        _ = task(conv_net()).step((x, y)).indices
    with pytest.raises(InputError, match="the model returned str"):
        network.logits_of("text")
