"""Problem against dense automatic differentiation, and its promise to leave the user's model alone."""

import copy
import types
import warnings

import pytest
import torch
from cases import MAKERS, case, dense, dense_hessian
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape import InputError, NonDeterministicWarning, Problem, surface

CE = nn.CrossEntropyLoss()
close = torch.testing.assert_close


def state(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.data_ptr() for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
    )


def assert_same(before, after):
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key
    assert before[1:] == after[1:]


@pytest.mark.parametrize("name", MAKERS)
class TestAgainstDense:
    def test_loss(self, name):
        model, batches = case(name)
        problem = Problem(model, CE, batches)
        close(problem.loss(), dense(model, batches, problem.parameters)(problem.weights), rtol=1e-12, atol=0)

    def test_gradient(self, name):
        model, batches = case(name)
        problem = Problem(model, CE, batches)
        reference = torch.func.grad(dense(model, batches, problem.parameters))(problem.weights)
        close(problem.gradient(), reference, rtol=1e-10, atol=1e-12)

    def test_hvp(self, name):
        model, batches = case(name)
        problem = Problem(model, CE, batches)
        v = torch.randn(problem.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        hessian = dense_hessian(model, batches, problem)
        close(problem.hvp(v), hessian @ v, rtol=1e-10, atol=1e-12)

    def test_elsewhere(self, name):
        model, batches = case(name)
        problem = Problem(model, CE, batches)
        w = problem.weights * 1.1 + 0.01
        reference = dense(model, batches, problem.parameters)
        close(problem.loss(w), reference(w), rtol=1e-12, atol=0)
        close(problem.gradient(w), torch.func.grad(reference)(w), rtol=1e-10, atol=1e-12)

    def test_batching_does_not_matter(self, name):
        model, batches = case(name)
        problem = Problem(model, CE, batches)
        for size in (1, 3, 11):
            other = problem.rebatched(size)
            close(other.loss(), problem.loss(), rtol=1e-12, atol=0)
            close(other.gradient(), problem.gradient(), rtol=1e-10, atol=1e-12)

    def test_leaves_the_model_alone(self, name):
        model, batches = case(name)
        model.train()
        next(model.modules()).training = False
        before = state(model)
        for policy in ("frozen", "batch", "recalibrate"):
            problem = Problem(model, CE, batches[:2], batch_norm=policy)
            problem.loss(), problem.evaluate(), problem.gradient(), problem.hvp(problem.weights), problem.losses()
            assert_same(before, state(model))


def test_leaves_the_model_alone_after_an_exception():
    model, batches = case("cnn")
    before = state(model)
    problem = Problem(model, CE, batches)

    def explode(*_):
        raise RuntimeError("stop")

    handle = model[3].register_forward_hook(explode)
    for call in (problem.loss, problem.gradient, lambda: problem.hvp(problem.weights)):
        with pytest.raises(InputError, match="the model failed on batch 0 .*RuntimeError: stop"):
            call()
    handle.remove()
    assert_same(before, state(model))


def test_examples_are_weighted_not_batches():
    model, batches = case("mlp")
    problem = Problem(model, CE, batches)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    close(problem.loss(), CE(model(x), y).detach(), rtol=1e-12, atol=0)
    unweighted = sum(CE(model(a), b).detach() for a, b in batches) / len(batches)
    assert abs(float(unweighted) - float(problem.loss())) > 1e-4


def test_per_example_loss_equals_mean_loss():
    model, batches = case("mlp")
    one = Problem(model, nn.CrossEntropyLoss(reduction="none"), batches)
    mean = Problem(model, CE, batches)
    close(one.gradient(), mean.gradient(), rtol=1e-12, atol=1e-14)
    close(mean.losses(), one.losses(), rtol=1e-12, atol=0)
    close(mean.losses().mean(), mean.loss(), rtol=1e-12, atol=0)


def test_accuracy():
    model, batches = case("cnn")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    expected = (model(x).argmax(1) == y).double().mean()
    close(Problem(model, CE, batches).evaluate().accuracy, expected)


@pytest.mark.parametrize("a_class", [True, False])
def test_accuracy_runs_over_the_examples_that_count(a_class):
    """A network may well name the class that is ignored: no hit, whatever it says."""
    model, batches = case("mlp")
    ignored = int(model(batches[0][0]).argmax(1)[0]) if a_class else -100
    batches = [(x, torch.where(torch.arange(len(y)) % 3 == 0, ignored, y)) for x, y in batches]
    problem = Problem(model, nn.CrossEntropyLoss(ignore_index=ignored), batches)
    counted = [(model(x).argmax(1)[y != ignored] == y[y != ignored]) for x, y in batches]
    close(problem.evaluate().accuracy, torch.cat(counted).double().mean())
    drawn = surface(problem, radius=0.1, grid=3)
    assert drawn.accuracy[1, 1] == float(problem.evaluate().accuracy)


def test_accuracy_is_nan_for_regression():
    model = nn.Linear(2, 1).double()
    batches = [(torch.randn(4, 2), torch.randn(4, 1))]
    assert Problem(model, nn.MSELoss(), batches).evaluate().accuracy.isnan()


def test_huggingface_style_dicts():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, features, mask=None, labels=None):
            logits = self.head(features * mask)
            loss = None if labels is None else CE(logits, labels)
            return types.SimpleNamespace(logits=logits, loss=loss)

    model = Model().double()
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    batches = [{"features": x, "mask": torch.ones(5, 3), "labels": y}]
    with_loss, own_loss = Problem(model, CE, batches), Problem(model, None, batches)
    close(with_loss.loss(), CE(model.head(x.double()), y).detach(), rtol=1e-12, atol=0)
    close(own_loss.gradient(), with_loss.gradient(), rtol=1e-12, atol=1e-14)


def test_a_tensor_is_its_own_target():
    model = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    close(Problem(model, nn.MSELoss(), [x]).loss(), nn.functional.mse_loss(model(x), x).detach(), rtol=1e-12, atol=0)


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode(torch.tanh(self.encode(x)))

    model, x = Tied().double(), torch.randn(4, 3, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), [x])
    assert problem.dimension == 9
    nn.functional.mse_loss(model(x), x).backward()
    close(problem.gradient(), model.encode.weight.grad.flatten(), rtol=1e-12, atol=1e-14)
    close(problem.loss(2 * problem.weights), _tied_loss(2 * model.encode.weight, x), rtol=1e-12, atol=0)


def _tied_loss(weight, x):
    return nn.functional.mse_loss(torch.tanh(x @ weight.T) @ weight.T, x).detach()


def test_recurrent_network():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model = Net().double()
    x, y = torch.randn(6, 5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    problem = Problem(model, CE, [(x, y)])
    CE(model(x), y).backward()
    close(problem.gradient(), problem.parameters.flatten([p.grad for p in model.parameters()]), rtol=1e-10, atol=1e-14)
    v, h = torch.randn_like(problem.weights), 1e-5
    difference = (problem.gradient(problem.weights + h * v) - problem.gradient(problem.weights - h * v)) / (2 * h)
    # Central differences in float64 carry an error of about h^2 + 1e-16 / h.
    close(problem.hvp(v), difference, rtol=1e-6, atol=1e-8)
    assert not torch.equal(problem.loss(2 * problem.weights), problem.loss())


def test_batch_norm_policies_against_torch():
    model, batches = case("resnet")
    batches = batches[:2]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    by_batch = [CE(copy.deepcopy(model).train()(a), b).detach() for a, b in batches]
    close(Problem(model, CE, batches, batch_norm="batch").loss(), torch.stack(by_batch).mean(), rtol=1e-12, atol=0)
    recalibrated = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([a for a, _ in batches], recalibrated)
    expected = CE(recalibrated.eval()(x), y).detach()
    close(Problem(model, CE, batches, batch_norm="recalibrate").loss(), expected, rtol=1e-12, atol=0)


def test_logit_normalization_removes_the_scale_of_the_last_layer():
    model, batches = case("mlp")
    problem = Problem(model, CE, batches, logit_normalization=True)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[4].weight *= 7
        scaled[4].bias *= 7
    close(Problem(scaled, CE, batches, logit_normalization=True).loss(), problem.loss(), rtol=1e-12, atol=0)
    outputs = problem.outputs()
    close(outputs.norm(dim=1), torch.ones(11, dtype=torch.float64))


def test_passes_are_counted():
    model, batches = case("mlp")
    problem = Problem(model, CE, batches)
    with problem.counting() as cost:
        problem.loss()
        problem.gradient()
        problem.hvp(problem.weights)
    assert cost == {"forward": 3.0, "backward": 2.0, "hvp": 1.0}


def test_unused_parameters_have_zero_derivatives():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)}).double()
    model.forward = lambda x: model["used"](x)
    problem = Problem(model, CE, [(torch.randn(3, 2), torch.tensor([0, 1, 1]))])
    assert not problem.gradient()[6:].any()
    assert not problem.hvp(torch.ones(12, dtype=torch.float64))[6:].any()


def test_a_restricted_problem_moves_only_its_parameters():
    model, batches = case("mlp")
    problem = Problem(model, CE, batches)
    part = problem.restricted("2")
    close(part.gradient(), problem.gradient()[42:90], rtol=1e-12, atol=0)
    block = dense_hessian(model, batches, problem)[42:90, 42:90]
    v = torch.randn(48, dtype=torch.float64)
    close(part.hvp(v), block @ v, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("default")
class TestDeterminismProbe:
    def test_quiet_on_a_sound_problem(self):
        model, batches = case("cnn")
        model.train()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Problem(model, CE, batches)

    def test_dropout_left_on(self):
        class Noisy(nn.Linear):
            def forward(self, x):
                return nn.functional.dropout(super().forward(x), 0.5)

        with pytest.warns(NonDeterministicWarning, match="F.dropout"):
            problem = Problem(Noisy(8, 3), CE, [(torch.randn(20, 8), torch.zeros(20, dtype=torch.long))])
        assert "dropout" in problem.provenance()["notes"][0]

    def test_dropout_in_training_mode(self):
        model = nn.Sequential(nn.Linear(8, 9), nn.Dropout(), nn.Linear(9, 3)).train()
        with pytest.warns(NonDeterministicWarning, match=r"dropout is on \(1\)"):
            Problem(model, CE, [(torch.randn(20, 8), torch.zeros(20, dtype=torch.long))], evaluation_mode=False)

    def test_batch_norm_in_training_mode(self):
        model, batches = case("cnn")
        with pytest.warns(NonDeterministicWarning, match="BatchNorm is in training mode"):
            Problem(model.train(), CE, batches[:2], evaluation_mode=False)

    def test_shuffling_loader(self):
        data = TensorDataset(torch.randn(40, 5), torch.randint(0, 3, (40,)))
        model, _ = case("mlp", dtype=torch.float32)
        with pytest.warns(NonDeterministicWarning, match="shuffle=False"):
            problem = Problem(model, CE, DataLoader(data, batch_size=8, shuffle=True))
        assert torch.equal(problem.loss(), problem.loss())

    def test_leaves_the_global_random_stream_alone(self):
        model, batches = case("cnn")
        before = torch.get_rng_state()
        Problem(model, CE, batches)
        assert torch.equal(before, torch.get_rng_state())


class TestBadInput:
    def test_no_trainable_parameter(self):
        with pytest.raises(InputError, match="no trainable parameter"):
            Problem(nn.ReLU(), CE, [(torch.randn(2, 2), torch.tensor([0, 1]))])

    def test_no_example(self):
        with pytest.raises(InputError, match="hold no example"):
            Problem(nn.Linear(2, 2), CE, [])

    def test_sum_reduced_loss(self):
        with pytest.raises(InputError, match="reduction='sum'"):
            Problem(nn.Linear(2, 2), nn.CrossEntropyLoss(reduction="sum"), [(torch.randn(2, 2), torch.tensor([0, 1]))])

    def test_loss_of_another_shape(self):
        with pytest.raises(InputError, match=r"returned shape \(3, 2\)"):
            Problem(nn.Linear(2, 2), nn.MSELoss(reduction="none"), [(torch.randn(3, 2), torch.randn(3, 2))])

    def test_vector_of_another_length(self):
        problem = Problem(nn.Linear(2, 2), CE, [(torch.randn(2, 2), torch.tensor([0, 1]))])
        with pytest.raises(InputError, match=r"shape \(6,\), received \(5,\)"):
            problem.loss(torch.zeros(5))

    def test_pattern_that_matches_nothing(self):
        with pytest.raises(InputError, match="'weigth'.*nearest names are weight"):
            Problem(nn.Linear(2, 2), CE, [(torch.randn(2, 2), torch.tensor([0, 1]))], parameters="weigth")

    def test_unknown_policy(self):
        with pytest.raises(InputError, match="frozen, batch, recalibrate"):
            Problem(nn.Linear(2, 2), CE, [(torch.randn(2, 2), torch.tensor([0, 1]))], batch_norm="train")


def test_no_warning_on_a_machine_of_several_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Problem(nn.Linear(2, 2), nn.MSELoss(), [(torch.ones(3, 2), torch.ones(3, 2))])


def _retied(net):
    net[2].weight = net[0].weight


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda net: net.__setitem__(2, nn.Linear(4, 4)), "the layer '2' was replaced"),
        (lambda net: net.__setitem__(2, nn.Linear(4, 5)), "the layer '2' was replaced"),
        (lambda net: net.__delitem__(2), "the layer '2' was removed"),
        (lambda net: net.append(nn.Linear(4, 3)), "the parameter '3.bias' was added"),
        (lambda net: net.append(nn.BatchNorm1d(4, affine=False)), "a BatchNorm layer was added"),
        (lambda net: setattr(net[2], "bias", nn.Parameter(torch.zeros(1))), r"'2.bias' has the shape \(1,\)"),
        (_retied, "the parameter '2.weight' was removed, or tied to another"),
    ],
)
def test_a_network_that_was_changed_needs_a_new_problem(change, told):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    problem = Problem(net, nn.MSELoss(), [(torch.ones(3, 4), torch.zeros(3, 4))])
    change(net)
    with pytest.raises(InputError, match=f"^{told}.* since the Problem was made: make the Problem again"):
        problem.updated()


def test_other_tensors_in_the_same_layers_are_followed():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    data = [(torch.ones(3, 4), torch.zeros(3, 4))]
    problem = Problem(net, nn.MSELoss(), data)
    net[0].weight = nn.Parameter(torch.full((4, 4), 0.25))
    assert torch.equal(problem.updated().gradient(), Problem(net, nn.MSELoss(), data).gradient())
    net.load_state_dict({name: 2 * t for name, t in net.state_dict().items()}, assign=True)
    net[1] = nn.ReLU()
    assert torch.equal(problem.updated().gradient(), Problem(net, nn.MSELoss(), data).gradient())
