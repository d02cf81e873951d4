"""How vectors that are divided by their norm carry scale factors: weight normalization, normalize, cosines."""

from __future__ import annotations

from typing import Any

from landscape.invariance.rescaling.rules import RULES, named, opaque, rule
from landscape.invariance.rescaling.trace import NO_FACTOR, ObservedRun

__all__ = ["RULES"]


@rule("weight_norm")
def weight_norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """W = g v / ||v||: every slice of v has a free factor that nothing else sees, W has the factors of g.

    Both forms, `torch.nn.utils.weight_norm` and the parametrization, call this function.
    """
    arguments = named(func, args, kwargs, "v g dim")
    v, dim = arguments["v"], arguments.get("dim", 0)
    if not trace.is_parameter(v):
        return opaque(trace, func, args, kwargs, out)
    slices = trace.units.fresh(1 if dim == -1 else v.shape[dim])
    trace.use(v, (slices.view([-1 if i == dim else 1 for i in range(v.dim())]), 1))
    return trace.labels(arguments["g"]).expand(out.shape)


@rule("normalize")
def normalize(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """X / max(||x||, eps) takes the factor of a slice away: its entries are tied, what comes out has none."""
    arguments = named(func, args, kwargs, "input p dim eps")
    labels, dim = trace.labels(arguments["input"]), arguments.get("dim", 1)
    trace.units.reduce(labels, [dim] if isinstance(dim, int) else list(dim))
    return NO_FACTOR


@rule("cosine_similarity")
def cosine(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """As the product of two normalized vectors."""
    arguments = named(func, args, kwargs, "x1 x2 dim eps")
    for name in ("x1", "x2"):
        trace.units.reduce(trace.labels(arguments[name]), [arguments.get("dim", 1)])
    return NO_FACTOR


@rule("norm", "linalg_norm", "linalg_vector_norm")
def norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """||c x|| = c ||x|| for every order but 0: the entries of a slice are tied, their norm carries their factor."""
    linear_algebra = "linalg" in getattr(func, "__name__", "")
    arguments = named(func, args, kwargs, "input ord dim" if linear_algebra else "input p dim")
    if arguments.get("ord" if linear_algebra else "p") == 0:
        return opaque(trace, func, args, kwargs, out)
    labels, dim = trace.labels(arguments["input"]), arguments.get("dim")
    dims = range(labels.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return trace.units.reduce(labels, dims).reshape(out.shape)
