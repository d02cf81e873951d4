"""What came of a case."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torture.process import Ended

RIGHT, REFUSED, TOLD, FAILED = "right", "refused", "told", "failed"
OUTCOMES = (RIGHT, REFUSED, TOLD, FAILED)


@dataclass
class Verdict:
    """Of one case.

    Attributes:
        kind: the row of the table.
        outcome: "right" (the numbers of a run that nothing happened to), "refused" (exit 2 and one line), "told" (other
            numbers, and a line that the file cannot say whether it is whole) or "failed".
        tries: what the row counts: kills of a chain, say.
        texts: what failed, or the line.
    """

    kind: str
    outcome: str = RIGHT
    tries: int = 1
    texts: list[str] = field(default_factory=list)

    def fail(self, *texts: str) -> Verdict:
        """Add what is wrong; no text, nothing wrong."""
        if texts:
            self.outcome, before = FAILED, self.texts if self.outcome == FAILED else []
            self.texts = [*before, *texts]
        return self

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judged(kind: str, ended: Ended, differing: list[str] | None, untold: bool = False) -> Verdict:
    """Of a command that read something wrong.

    Args:
        kind: the row.
        ended: how the command ended.
        differing: where its numbers are not the right ones; None where there is nothing to compare with.
        untold: the file is of a kind that carries no checksum and is documented so: other numbers need no line.
    """
    verdict = Verdict(kind)
    if faults := faults_of(ended):
        return verdict.fail(*faults)
    if ended.status == 2:
        verdict.outcome, verdict.texts = REFUSED, [ended.lines[-1]]
    elif differing:
        said = [line for line in ended.lines if "carries no checksum" in line or "not the published file" in line]
        if not (said or untold):
            return verdict.fail(f"other numbers without a word: {'; '.join(differing[:3])}")
        verdict.outcome, verdict.texts = TOLD, [*said[:1], *differing[:1]]
    return verdict


def faults_of(ended: Ended, statuses: tuple[int, ...] = (0, 2)) -> list[str]:
    """What is wrong with the end of a command, whatever it was asked."""
    faults = []
    if ended.status is None:
        faults.append(f"still running after {ended.seconds:.0f} s")
    elif ended.status not in statuses:
        faults.append(f"status {ended.status}: {' | '.join(ended.lines[-4:])[:600]}")
    elif ended.status and not (ended.lines and ended.lines[-1].startswith("landscape: ")):
        faults.append(f"status {ended.status} without a line of ours: {' | '.join(ended.lines[-3:])[:300]}")
    if ended.left:
        faults.append("processes that it had started were left")
    if "Traceback" in ended.err:
        faults.append(f"a traceback: {' | '.join(ended.lines)[-900:]}")
    if ended.status == 2 and sum(not _warns(line) for line in ended.lines) > 1:
        faults.append(f"more than one line: {' | '.join(ended.lines)[:400]}")
    raw = {c for c in ended.err + ended.out if not c.isprintable() and c not in "\n\t"}
    if raw:
        faults.append(f"raw control characters: {sorted(raw)}")
    return faults


def _warns(line: str) -> bool:
    return any(words in line for words in ("carries no checksum", "not the published file", "Warning: "))


def table(verdicts: list[dict[str, Any]]) -> str:
    """Kind by kind in Markdown: tried, survived (right, refused, told), failed."""
    lines = ["| kind | tried | right | refused | told | failed |", "|---|---|---|---|---|---|"]
    for kind in sorted({v["kind"] for v in verdicts}):
        counts: Counter[str] = Counter()
        for v in verdicts:
            if v["kind"] == kind:
                counts[v["outcome"]] += v["tries"]
        cells = [f"{sum(counts.values()):,}", *(f"{counts[o]:,}" if counts[o] else "" for o in OUTCOMES)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)
