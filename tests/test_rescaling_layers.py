"""Rescaling symmetries of normalized weights and vectors, and of recurrent layers: the factors known by hand."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from rescaling_cases import check, images, settle
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from landscape.invariance.rescaling import find


def by_hooks(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer, **options)


# -- weight normalization: a row of v is free, the gain and the bias make the unit ------------------------------------


def test_the_factors_of_a_normalized_layer_by_hand():
    """Every row of v alone, and every triple of gain, bias and next column: applied here without the library."""
    model = nn.Sequential(weight_norm(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        before, v = model(images(3)), model[0].parametrizations.weight
        v.original0[2] *= 3
        model[0].bias[2] *= 3
        model[2].weight[:, 2] /= 3
        v.original1[1] *= 7
        torch.testing.assert_close(model(images(3)), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalized", [weight_norm, by_hooks])
@pytest.mark.parametrize(
    ("layers", "shape", "dimension"),
    [
        (lambda n: [n(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2)], (3,), 5 + 5),
        # The columns of v are of one row: the five inputs share one factor.
        (lambda n: [nn.Linear(3, 5), nn.ReLU(), n(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 2)], (3,), 1 + 4 + 4),
        (lambda n: [n(nn.Linear(3, 5), dim=None), nn.ReLU(), nn.Linear(5, 2)], (3,), 1 + 1),
        # One gain a column: it takes the factor of an input away, and all outputs share one.
        (
            lambda n: [nn.Linear(3, 5), nn.ReLU(), n(nn.Linear(5, 4), dim=1), nn.ReLU(), nn.Linear(4, 2)],
            (3,),
            5 + 5 + 1,
        ),
        (lambda n: [n(nn.Conv1d(6, 4, 2)), nn.ReLU(), nn.Conv1d(4, 2, 1)], (6, 5), 4 + 4),
        # A factor for the inputs of each group.
        (
            lambda n: [nn.Conv1d(6, 4, 1), n(nn.Conv1d(4, 4, 2, groups=2)), nn.ReLU(), nn.Conv1d(4, 2, 1)],
            (6, 5),
            2 + 4 + 4,
        ),
        (lambda n: [n(nn.ConvTranspose1d(6, 4, 2), dim=1), nn.ReLU(), nn.Conv1d(4, 2, 1)], (6, 5), 4 + 4),
        (
            lambda n: [nn.Conv1d(6, 4, 1), n(nn.ConvTranspose1d(4, 6, 2, groups=2)), nn.ReLU(), nn.Conv1d(6, 2, 1)],
            (6, 5),
            4 + 4 + 2,
        ),
    ],
)
def test_weight_normalization(normalized, layers, shape, dimension):
    model = nn.Sequential(*layers(normalized)).double()
    x = images(*shape)
    model(x)  # the form by hooks leaves a computed tensor in the module, which deepcopy refuses
    symmetries = check(model, x, dimension)
    assert not symmetries.notes


def test_a_weight_that_is_no_parameter():
    """A fixed matrix mixes its inputs: they share one factor, which passes."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("matrix", torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))

        def forward(self, x):
            return F.linear(x, self.matrix)

    check(settle(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), Fixed(), nn.ReLU(), nn.Linear(4, 2))), images(3), 1)


# -- vectors divided by their norm ----------------------------------------------------------------------------------


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "dimension"),
    [
        (lambda x: F.normalize(x, dim=-1), 5 + 1),
        (lambda x: F.normalize(x, p=1.0, dim=1), 5 + 1),
        (lambda x: F.normalize(x, dim=0), 5 + 6),  # each feature over the examples
        (lambda x: x / x.norm(dim=-1, keepdim=True), 5 + 1),
        (lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True), 5 + 1),
        (lambda x: x / torch.linalg.vector_norm(x, ord=1, dim=-1, keepdim=True), 5 + 1),
        (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-3), 5),  # the sum with a constant ends the path
        (lambda x: x / x.norm(p=0, dim=-1, keepdim=True), 5),  # a count, which no factor changes
    ],
)
def test_normalized_vectors(function, dimension):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6), Function(function), nn.Linear(6, 2))
    check(settle(model), images(3), dimension)


class CosineHead(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 5, generator=torch.Generator().manual_seed(2)))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.linear(F.normalize(x), F.normalize(w)),
        lambda x, w: F.cosine_similarity(x[:, None], w[None], dim=-1),
    ],
)
def test_a_head_of_cosines(function):
    """One factor for the features, one for each row of the weight."""
    check(settle(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), CosineHead(function))), images(3), 1 + 2)


class RMSNorm(nn.Module):
    """As Llama's."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centered = x - x.mean(-1, keepdim=True)
        return self.weight * centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-5) + self.bias


@pytest.mark.parametrize(("written", "torchs"), [(RMSNorm, nn.RMSNorm), (LayerNorm, nn.LayerNorm)])
def test_a_normalization_written_by_hand_is_that_of_torch(written, torchs):
    """The path ends (eps); every entry of the gain (and shift) is a unit."""
    for norm in (written, torchs):
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6), norm(6), nn.Linear(6, 2))
        check(settle(model), images(3), 5 + 6)


# -- recurrent layers -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """The sequence or the last state of an RNN, and a head."""

    def __init__(self, *, last=False, packed=False, **options):
        super().__init__()
        options = {"nonlinearity": "relu", "batch_first": True, **options}
        self.rnn, self.last, self.packed = nn.RNN(3, 4, **options), last, packed
        self.head = nn.Linear(8 if options.get("bidirectional") and not last else 4, 2)

    def forward(self, x):
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, [6, 5, 2][: len(x)], batch_first=True)
        outputs, state = self.rnn(x)
        if self.packed:
            outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        return self.head(state[-1] if self.last else outputs)


@pytest.mark.parametrize(
    ("options", "dimension"),
    [
        ({}, 4),
        ({"bias": False}, 4),
        ({"batch_first": False}, 4),
        ({"num_layers": 2, "dropout": 0.5}, 4 + 4),
        ({"num_layers": 2, "bidirectional": True}, 4 * 4),
        ({"num_layers": 2, "last": True}, 4 + 4),
        ({"packed": True}, 4),
        ({"packed": True, "bidirectional": True, "num_layers": 2}, 4 * 4),
        ({"nonlinearity": "tanh"}, 0),
    ],
)
def test_recurrent_layers(options, dimension):
    check(Recurrent(**options).double(), images(6, 3), dimension)


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(3, 4, nonlinearity="relu"), nn.Linear(4, 2)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


def test_recurrent_cells_and_an_initial_state_of_the_input():
    check(Cells().double(), images(6, 3), 4)

    class Started(Recurrent):
        def forward(self, x):
            start = torch.ones(1, len(x), 4, dtype=x.dtype)
            return self.head(self.rnn(x, start)[0])

    check(Started().double(), images(6, 3), 0)  # a state that is not zero has no factor, and is added to the hidden one


class Read(nn.Module):
    """Units of a ReLU layer that a recurrent layer reads, as it is, packed, or cell by cell."""

    def __init__(self, kind, **options):
        super().__init__()
        self.first, self.rnn = nn.Linear(3, 5), kind(5, 4, **options)
        self.head = nn.LazyLinear(2)

    def forward(self, x):
        h = torch.relu(self.first(x))
        if isinstance(self.rnn, nn.RNNCellBase):
            state = self.rnn(h[:, 0])
            state = self.rnn(h[:, 1], state)
            return self.head(state[0] if isinstance(state, tuple) else state)
        if self.rnn.bias:
            return self.head(self.rnn(h)[0]).mean(1)
        packed = nn.utils.rnn.pack_padded_sequence(h, torch.full((len(x),), 6), batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]).mean(1)


LAYERS = [
    *((kind, {"batch_first": True}) for kind in (nn.LSTM, nn.GRU, nn.RNN)),
    *((kind, {"batch_first": True, "bias": False}) for kind in (nn.LSTM, nn.GRU, nn.RNN)),
    *((kind, {"batch_first": True, "bidirectional": True, "num_layers": 2}) for kind in (nn.LSTM, nn.GRU, nn.RNN)),
    (nn.LSTM, {"batch_first": True, "proj_size": 3, "num_layers": 2}),
    *((kind, {"bias": bias}) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) for bias in (True, False)),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_what_gated_layers_read_may_be_rescaled(kind, options):
    model = Read(kind, **options)
    model(images(6, 3).float())
    check(model.double(), images(6, 3), 5)


def test_hidden_entries_of_gated_layers_have_no_factor():
    for kind in (nn.LSTM, nn.GRU):
        model = Recurrent()
        model.rnn = kind(3, 4, batch_first=True)
        assert find(model.double(), images(6, 3)).dimension == 0
