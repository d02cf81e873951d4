"""Draws by seed, and the table of what came of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from audit.shrink import shrunk
from audit.verdict import WRONG


def audited(subject: str, seeds: list[int], shrink: bool = True) -> list[dict[str, Any]]:
    """Verdicts of these seeds, one thread; what is wrong is made smaller."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"audit.subjects.{subject}")
    verdicts = []
    for seed in seeds:
        verdict = module.audit(seed)
        if verdict.outcome == WRONG and shrink:
            verdict = shrunk(module, verdict)
        verdicts.append(verdict.plain())
    return verdicts


def table(verdicts: list[dict[str, Any]]) -> str:
    """Kind by kind: tried, right, refused, wrong."""
    outcomes = ("right", "refused", "wrong")
    kinds = sorted({v["kind"] for v in verdicts})
    width = max(map(len, [*kinds, "all"]))
    lines = [f"{'kind':{width}} {'tried':>7} {'right':>7} {'refused':>7} {'wrong':>7}"]
    for kind in [*kinds, "all"]:
        these = [v["outcome"] for v in verdicts if kind in (v["kind"], "all")]
        counts = "".join(f"{these.count(o):8}" for o in outcomes)
        lines.append(f"{kind:{width}} {len(these):7}{counts}")
    return "\n".join(lines)
