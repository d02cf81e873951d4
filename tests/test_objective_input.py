"""What L(w) cannot be made of is refused in one line."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from objective_cases import WEIGHTS, classifier, examples
from torch import nn

import landscape
from landscape import InputError, Problem

warnings.simplefilter("ignore", UserWarning)


@pytest.mark.parametrize(
    ("model", "loss", "batch", "message"),
    [
        (lambda x: x, F.cross_entropy, None, "nn.Module is needed"),
        (nn.Linear, F.cross_entropy, None, "Linear is the class|the class Linear"),
        (classifier(), nn.CrossEntropyLoss, None, "loss is the class"),
        (classifier(), lambda o, t: 1.0, None, "float, no tensor"),
        (classifier(), lambda o, t: o, None, r"shape \(4, 3\) for 4 examples"),
        (classifier(), lambda o, t: {"a": o.sum()}, None, "dict, no tensor"),
        (classifier(), lambda o, t: o.argmax(), None, "torch.int64"),
        (classifier(), lambda o, t, u: o.mean(), None, "loss failed on batch 0"),
        (classifier(), lambda o, t: F.cross_entropy(o, t[:2]), None, "loss failed on batch 0"),
        (classifier(classes=1), F.cross_entropy, None, "single class is 0"),
        (classifier(classes=1), nn.MSELoss(), "numbers", "equal shapes"),
        (classifier(), F.cross_entropy, "labels", "from 0 to 19, the outputs have 3"),
        (classifier(), F.cross_entropy, "numbers", "cross-entropy needs class indices"),
        (classifier(), nn.CrossEntropyLoss(weight=-WEIGHTS), None, "negative or all zero"),
        (classifier(), nn.CrossEntropyLoss(weight=0 * WEIGHTS), None, "negative or all zero"),
        (classifier(), functools.partial(F.cross_entropy, reduction="sum"), None, "reduction='sum'"),
        (classifier(inputs=4), F.cross_entropy, None, "the model failed on batch 0"),
        (classifier(), None, None, "without a loss|returned loss|shape"),
    ],
    ids=range(18),
)
def test_what_cannot_be_is_refused_in_one_line(model, loss, batch, message):
    x, y = examples(4)
    y = {"numbers": x[:, 0], "labels": torch.tensor([0, 19, 1, 2]), None: y}[batch]
    with pytest.raises(InputError, match=message) as raised:
        Problem(model, loss, [(x, y)])
    assert "\n" not in str(raised.value)


def test_labels_beyond_the_outputs_in_a_later_batch():
    x, y = examples(8)
    later = y.clone()
    later[7] = 12
    with pytest.raises(InputError, match="from 0 to 12|to 12, the outputs have 3"):
        Problem(classifier(), F.cross_entropy, [(x[:4], later[:4]), (x[4:], later[4:])])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "a", torch.ones(2)], ids=range(4))
def test_weights_that_are_none(weight):
    x, y = examples(4)
    with pytest.raises(InputError, match="number"):
        Problem(classifier(), lambda o, t: o.mean(), [(x, y)], weight=lambda b: weight)
    with pytest.raises(InputError, match="number"):
        Problem(classifier(), batches=[(x, y)], objective=lambda m, b: (m(b[0]).mean(), weight))


def test_an_objective_whose_weight_changes_is_refused():
    x, y = examples(4)

    def moving(model, batch):
        return model(batch[0]).square().mean(), 1 + float(model[0].weight.sum().abs())

    for check in (True, False):
        with pytest.raises(InputError, match="must be the same at every w"):
            Problem(classifier(), batches=[(x, y)], objective=moving, check=check)


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), F.multilabel_margin_loss], ids=range(2))
def test_losses_without_a_second_derivative_are_named_by_every_measure_that_needs_one(loss):
    x, y = examples(12)
    y = y if isinstance(loss, nn.Module) else torch.full((12, 3), -1)
    problem = Problem(classifier(), loss, [(x, y)])
    for call in (lambda: landscape.trace(problem), lambda: landscape.top_eigenvalues(problem, k=1)):
        with pytest.raises(InputError, match="no second derivative") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_module_that_keeps_what_it_computed_from_its_weights_is_refused():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head, self.kept = nn.Linear(3, 3), nn.Linear(3, 3), None

        def forward(self, x):
            if self.kept is None:
                self.kept = F.normalize(self.head.weight, dim=1)
            return torch.tanh(self.inner(x)) @ self.kept.T

    model, (x, y) = Merged().double(), examples()
    with pytest.raises(InputError, match="keeps 'kept', computed from its weights"):
        Problem(model, F.cross_entropy, [(x, y)])
    assert model.kept is None


class Swish(torch.autograd.Function):
    """Right in its first derivative; the second is cut off, as the intermediate is kept past autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.gate = torch.sigmoid(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ctx.gate * (1 + x * (1 - ctx.gate))


class Twice(Swish):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return g * gate * (1 + x * (1 - gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_custom_functions_with_a_wrong_second_derivative_are_refused(dtype):
    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            torch.manual_seed(0)
            self.function, self.first, self.second = function, nn.Linear(3, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.second(self.function.apply(self.first(x)))

    x, y = examples()
    for call in (lambda p: landscape.top_eigenvalues(p, k=1), lambda p: landscape.trace(p, method="hutch++")):
        with pytest.raises(InputError, match="Swish, a custom function, is wrong"):
            call(Problem(Net(Swish).to(dtype), F.cross_entropy, [(x.to(dtype), y)]))
    right = Problem(Net(Twice).to(dtype), F.cross_entropy, [(x.to(dtype), y)])
    assert landscape.top_eigenvalues(right, k=1).converged


def test_a_surface_refuses_to_divide_what_may_not_be_divided():
    x, y = examples()
    problem = Problem(classifier(), lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS), [(x, y)])
    with pytest.raises(InputError, match="another function"):
        landscape.surface(problem, radius=0.05, grid=3, batch_size=3)


def test_inference_mode_around_a_problem_is_refused():
    x, y = examples()
    with torch.inference_mode(), pytest.raises(InputError, match="Problem is made within"):
        Problem(classifier(), F.cross_entropy, [(x, y)])


@pytest.mark.parametrize("derivative", [Problem.gradient, landscape.top_eigenvalues, landscape.trace])
def test_derivatives_within_inference_mode_are_refused(derivative):
    problem = Problem(classifier(), F.cross_entropy, [examples()])
    rise = landscape.average_sharpness(problem, draws=4).value
    with torch.inference_mode():
        assert landscape.average_sharpness(problem, draws=4).value == rise  # forward passes need none
        with pytest.raises(InputError, match="derivative is asked for within"):
            derivative(problem)


def test_an_objective_that_weighs_some_batches_only():
    x, y = examples(9)

    def sometimes(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return (loss, len(batch[1])) if len(batch[1]) == 5 else loss

    with pytest.raises(InputError, match="none for batch 1"):
        Problem(classifier(), batches=[(x[:5], y[:5]), (x[5:], y[5:])], objective=sometimes)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError("no backward today")


def test_a_backward_pass_that_fails_is_one_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return Broken.apply(self.inner(x))

    x, y = examples(4)
    problem = Problem(Net(), F.cross_entropy, [(x, y)])
    for call in (problem.gradient, lambda: landscape.top_eigenvalues(problem, k=1)):
        with pytest.raises(InputError, match="the backward pass failed on batch 0 .*no backward today") as raised:
            call()
        assert "\n" not in str(raised.value)
