"""Networks of linear layers: activations, norms, shared, frozen and reparametrized weights."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from audit.aims.aim import Aim, Outputs, at_once
from audit.networks.network import CLASSES, Network, features


def _mlp(activation: nn.Module) -> Network:
    return Network(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, CLASSES)), features(3), part="2")


def _bce(outputs: Outputs) -> Aim:
    loss = nn.BCELoss(weight=torch.rand(CLASSES).to(outputs.dtype) if torch.rand(()) < 0.5 else None)
    return Aim({"loss": loss}, at_once(loss), lambda n, fields: torch.rand(n, CLASSES), losses=True)


def _bce_function(outputs: Outputs) -> Aim:
    return Aim(
        {"loss": F.binary_cross_entropy},
        at_once(F.binary_cross_entropy),
        lambda n, fields: torch.randint(2, (n, CLASSES)).float(),
        losses=True,
    )


def mlp_sigmoid() -> Network:
    """Returns probabilities."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES), nn.Sigmoid())
    return Network(
        model, features(3), outputs="special", aims={"bce module": _bce, "bce function": _bce_function}, part="2"
    )


def linear() -> Network:
    return Network(nn.Sequential(nn.Linear(3, CLASSES)), features(3), part="*.weight")


def mlp_tanh() -> Network:
    return _mlp(nn.Tanh())


def mlp_relu() -> Network:
    return _mlp(nn.ReLU())


def mlp_gelu() -> Network:
    return _mlp(nn.GELU())


def mlp_silu() -> Network:
    return _mlp(nn.SiLU())


def mlp_prelu() -> Network:
    return _mlp(nn.PReLU(4))


def mlp_inplace() -> Network:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.SiLU(inplace=True))
    return Network(model, features(3))


def dropout() -> Network:
    """Left in training mode: landscape evaluates it in evaluation mode."""
    return Network(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, CLASSES)), features(3))


def layer_norm() -> Network:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, CLASSES))
    return Network(model, features(3), part="1")


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rms_norm() -> Network:
    return Network(nn.Sequential(nn.Linear(3, 4), RMSNorm(4), nn.Tanh(), nn.Linear(4, CLASSES)), features(3))


class Tied(nn.Module):
    """Encoder and decoder share their matrix, once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.t(), self.bias)


def tied() -> Network:
    return Network(Tied(), features(4), outputs="values")


class TwiceTied(nn.Module):
    """One layer under two names, applied twice in depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, CLASSES, bias=False)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.relu(self.first(x)))))


def twice_tied() -> Network:
    return Network(TwiceTied(), features(3))


def frozen_part() -> Network:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    model[0].weight.requires_grad_(False)
    return Network(model, features(3), part="2")


class Adapter(nn.Module):
    """A frozen layer with a trainable change of low rank beside it."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.lora_a.t() @ self.lora_b.t()


def adapter() -> Network:
    return Network(nn.Sequential(Adapter(nn.Linear(4, 4), 1), nn.Tanh(), nn.Linear(4, 3)), features(4), part="*lora_*")


def _two(inner: nn.Module, outer: nn.Module, second: bool = True) -> Network:
    return Network(nn.Sequential(inner, nn.Tanh(), outer), features(3), second=second)


def weight_norm() -> Network:
    norm = parametrizations.weight_norm
    return _two(norm(nn.Linear(3, 4)), norm(nn.Linear(4, CLASSES)), second=False)


def weight_norm_hook() -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _two(
            nn.utils.weight_norm(nn.Linear(3, 4)), nn.utils.weight_norm(nn.Linear(4, CLASSES), dim=1), second=False
        )


def spectral_norm() -> Network:
    return _two(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, CLASSES))


def spectral_norm_hook() -> Network:
    return _two(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, CLASSES))


def orthogonal() -> Network:
    return _two(parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="cayley"), nn.Linear(3, CLASSES))


class Unused(nn.Module):
    """A head that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.used, self.unused = nn.Linear(3, 4), nn.Linear(4, CLASSES), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(F.softplus(self.inner(x)))


def unused_head() -> Network:
    return Network(Unused(), features(3))


class Residual(nn.Module):
    """Blocks of one class, a scalar parameter, a buffer that forward counts up."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.gate = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for block in self.blocks:
            x = x + self.gate * torch.sin(block(x))
        return x


def residual() -> Network:
    return Network(Residual(), features(3), part="blocks.1")


def checkpointed() -> Network:
    """Activations computed anew in the backward pass."""

    class Checkpointed(nn.Sequential):
        recompute = True

        def forward(self, x: Tensor) -> Tensor:
            if not self.recompute:
                return super().forward(x)
            inner = torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)
            assert isinstance(inner, Tensor)
            return inner

    return Network(Checkpointed(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)), features(3))


class Mixed(nn.Module):
    """Layers in bfloat16, their norm and the last one in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(3, 4, dtype=torch.bfloat16), nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x.to(self.inner.weight.dtype))
        return self.out(torch.tanh(self.norm(inner.to(self.norm.weight.dtype))))


def mixed() -> Network:
    return Network(Mixed(), features(3), mixed=True)


KINDS = {
    f.__name__: f
    for f in (
        *(
            linear,
            mlp_sigmoid,
            mlp_tanh,
            mlp_relu,
            mlp_gelu,
            mlp_silu,
            mlp_prelu,
            mlp_inplace,
            dropout,
            layer_norm,
            rms_norm,
        ),
        *(tied, twice_tied, frozen_part, adapter, weight_norm, weight_norm_hook, spectral_norm, spectral_norm_hook),
        *(orthogonal, unused_head, residual, checkpointed, mixed),
    )
}
