"""A failing draw made as small as it still fails."""

from __future__ import annotations

from types import ModuleType

from audit.verdict import WRONG, Verdict

_TRIES = 60


def shrunk(subject: ModuleType, verdict: Verdict) -> Verdict:
    """Simpler choices that fail too, one after the other; the last of them."""
    tries = 0
    going = True
    while going:
        going = False
        for choice in subject.simpler(verdict.choice):
            tries += 1
            if tries > _TRIES:
                return verdict
            other = subject.again(choice)
            if other.outcome == WRONG and _same_fault(verdict, other):
                verdict, going = other, True
                break
    return verdict


def _same_fault(one: Verdict, other: Verdict) -> bool:
    """A simpler draw must fail, not the audit's drawing of it."""
    failed = [any("the audit failed" in t for t in v.texts) for v in (one, other)]
    return failed[0] == failed[1]
