"""The function L(w): loss, gradient, curvature and sharpness of any network, objective and division into batches."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import landscape
from audit.operations import ALL, ALWAYS, OPERATIONS, Look, Wrong
from audit.situation import Choice, Situation, drawn, situation
from audit.verdict import WRONG, Verdict, line_fault
from landscape.errors import AsymmetryWarning, InputError, NonDeterministicWarning

SLACK = {"float64": 1e-9, "float32": 3e-5}
# Where an ill-conditioned network leaves more undecided in float32, and the same draw is right in float64.
LOOSE = 1e-3
COARSE = 5e-2
OPERATIONS_A_DRAW = 3


def audit(seed: int) -> Verdict:
    """Draw by seed and compare."""
    return again(choice(seed))


def choice(seed: int) -> dict[str, Any]:
    """What is drawn by seed."""
    others = tuple(o for o in OPERATIONS if o not in ALWAYS)
    return dataclasses.asdict(drawn(seed, others, OPERATIONS_A_DRAW))


def again(kept: dict[str, Any]) -> Verdict:
    """Compare what was drawn before."""
    made = Choice(**{**kept, "operations": tuple(kept["operations"])})
    verdict = _compared(made, SLACK[made.dtype])
    if verdict.outcome == WRONG and made.dtype != "float64":
        exact = dataclasses.replace(made, dtype="float64")
        if _compared(exact, SLACK["float64"]).outcome != WRONG:
            return _compared(made, LOOSE, doubted=True)
    return verdict


def _compared(made: Choice, slack: float, *, doubted: bool = False) -> Verdict:
    """What landscape says beside the reference; `doubted`: numbers that it says not to trust may be off."""
    verdict = Verdict(made.seed, made.network, choice=dataclasses.asdict(made))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            built = situation(made)
            _compare(built, verdict, slack)
        except Exception as error:  # the audit's own fault
            verdict.wrong(f"the audit failed: {type(error).__name__}: {str(error)[:300]}")
            return verdict
    asymmetric = [str(w.message) for w in heard if issubclass(w.category, AsymmetryWarning)]
    if doubted and asymmetric and verdict.outcome == WRONG:  # rounding above what curvature there is
        verdict = Verdict(made.seed, made.network, choice=dataclasses.asdict(made))
        verdict.refused(asymmetric[0])
    random = [str(w.message) for w in heard if issubclass(w.category, NonDeterministicWarning)]
    if random and not built.network.coupled:
        verdict.wrong(f"warned of randomness: {random[0]}")
    return verdict


def simpler(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices with one thing less in them."""
    made = Choice(**{**kept, "operations": tuple(kept["operations"])})
    return (dataclasses.asdict(c) for c in made.simpler())


def _compare(built: Situation, verdict: Verdict, slack: float) -> None:
    model = built.model
    before = _state(built.network.model)
    try:
        problem = landscape.Problem(model, batches=built.items, **built.arguments)
    except InputError as error:
        _judge(verdict, "Problem", error, built)
        return
    except Exception as error:
        verdict.wrong(f"Problem raised {type(error).__name__}: {str(error)[:300]}")
        return
    if built.aim.refused == "must":
        verdict.wrong("Problem took what has to be refused")
        return
    look = Look(built, problem, COARSE if built.network.mixed else slack)
    for name in (*ALWAYS, *built.choice.operations) if _defined(built) else ("undefined",):
        try:
            ALL[name](look)
        except Wrong as fault:
            verdict.wrong(f"{fault} {built.reference.doubt() or ''}".strip())
        except InputError as error:
            _judge(verdict, name, error, built)
        except Exception as error:
            verdict.wrong(f"{name} raised {type(error).__name__}: {str(error)[:300]}")
    if _state(built.network.model) != before:
        verdict.wrong("the model was changed")


def _judge(verdict: Verdict, name: str, error: InputError, built: Situation) -> None:
    fault = line_fault(str(error))
    if not _refusable(built, name, str(error)):
        verdict.wrong(f"{name} refused: {error}")
    elif fault is not None:
        verdict.wrong(f"{name}: {fault}: {error}")
    else:
        verdict.refused(f"{name}: {error}")


def _refusable(built: Situation, name: str, text: str) -> bool:
    """Whether the combination may be refused by this operation."""
    if built.aim.refused is not None or built.network.refusable:
        return True
    if "BatchNorm has no variance over one example" in text:
        own_statistics = built.choice.policy != "frozen" or built.network.coupled
        return own_statistics and any(len(b) == 1 for b in built.reference.batches)
    if "only classes of weight 0" in text:  # 0 is divided out of what label smoothing adds: torch's own mean is inf
        return any(loss is not None and not bool(loss.isfinite()) for loss in built.reference.alone())
    if "too coarsely" in text:
        return name == "losses" and built.network.mixed
    if "does not depend on the chosen parameters" in text:
        return not bool(built.reference.at_weights[1].any())
    if "BatchNorm uses the statistics of each batch" in text or "keeps no running statistics" in text:
        return name == "losses"
    if name == "ggn" and (built.network.pick or not built.aim.losses or built.network.outputs in ("places", "special")):
        return True
    second = ("ggn", "hvp", "top_eigenvalues", "trace", "diagonal", "layers")
    return (name == "losses" and not (built.aim.losses and built.network.sliceable)) or (
        name in second and not (built.network.curved and built.aim.curved)
    )


def _defined(built: Situation) -> bool:
    """Whether there is an L: BatchNorm has no variance over one example."""
    try:
        return bool(built.reference.at_weights[0].isfinite())
    except ValueError:
        return False


def _state(model: nn.Module) -> list[Any]:
    """Bytes of every tensor, flags of every module."""
    tensors = [
        (n, bytes(t.detach().contiguous().view(-1).view(torch.uint8).numpy()))
        for n, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    flags = [(m.training, getattr(m, "momentum", None), getattr(m, "sparse", None)) for m in model.modules()]
    assert torch.is_grad_enabled()
    return [tensors, flags, [p.requires_grad for p in model.parameters()], [p.grad is None for p in model.parameters()]]
