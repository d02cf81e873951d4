"""`make audit`: draws by seed until the time or the number is reached, goes on where it was stopped, prints tables.

Without --subject the minutes are shared out: each subject has an equal part of what the ones before it left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from audit.draws import audited, table
from audit.verdict import WRONG, Verdict

SUBJECTS = ("function", "spectrum", "bowl", "rescaling", "step")
_BLOCK = 20


def main() -> int:
    """Run; 0 where nothing was wrong, 2 where what is to be replayed is no case."""
    asked = _arguments()
    if asked.replay:
        return _replay(asked.replay)
    subjects = [asked.subject] if asked.subject else list(SUBJECTS)
    end = time.monotonic() + 60 * asked.minutes
    wrong = False
    try:
        for i, subject in enumerate(subjects):
            now = time.monotonic()
            wrong |= _run(asked, subject, now + (end - now) / (len(subjects) - i))
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 1
    return int(wrong)


def _run(asked: argparse.Namespace, subject: str, deadline: float) -> bool:
    """Draw of one subject until the deadline; whether anything was wrong, also in draws known before."""
    out = Path(asked.out)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    state = out / f"{subject}.jsonl"
    known = _known(state)
    first = max((v["seed"] for v in known), default=asked.first - 1) + 1
    end = asked.first + asked.draws if asked.draws else None
    print(f"{subject}: seeds from {first}, {len(known)} draws known in {state}", flush=True)
    try:
        with state.open("a", encoding="utf-8") as log:
            for verdict in _verdicts(subject, asked.workers, first, end, deadline):
                known.append(verdict)
                log.write(json.dumps(verdict) + "\n")
                log.flush()
                if verdict["outcome"] == WRONG:
                    _keep(out / "cases", subject, verdict)
    finally:
        print(table(known), flush=True)
    return any(v["outcome"] == WRONG for v in known)


def _verdicts(subject: str, workers: int, first: int, end: int | None, deadline: float) -> Any:
    """In the order of the seeds: a state file that ends early holds no gap."""

    def blocks() -> Any:
        start = first
        # At least one block, however late it is: no subject goes without draws.
        while (end is None or start < end) and (start == first or time.monotonic() < deadline):
            stop = start + _BLOCK if end is None else min(start + _BLOCK, end)
            yield subject, list(range(start, stop))
            start = stop

    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pending: list[Any] = []
        source = blocks()
        while True:
            while len(pending) < 2 * workers and (block := next(source, None)) is not None:
                pending.append(pool.apply_async(audited, block))
            if not pending:
                return
            yield from pending.pop(0).get()


def _keep(folder: Path, subject: str, verdict: dict[str, Any]) -> None:
    file = folder / f"{subject}-{verdict['seed']}.json"
    file.write_text(json.dumps({"subject": subject, **verdict}, indent=1), encoding="utf-8")
    choice = {k: v for k, v in verdict["choice"].items() if k != "operations"}
    print(f"WRONG, seed {verdict['seed']}: {'; '.join(verdict['texts'])[:400]}\n  {choice}\n  {file}", flush=True)


def _replay(file: str) -> int:
    try:
        case = json.loads(Path(file).read_text(encoding="utf-8"))
        subject, choice = SUBJECTS[SUBJECTS.index(case["subject"])], dict(case["choice"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{file} is not a case that make audit wrote ({type(error).__name__}: {error})", file=sys.stderr)
        return 2
    verdict: Verdict = importlib.import_module(f"audit.subjects.{subject}").again(choice)
    print(json.dumps(verdict.plain(), indent=1))
    return int(verdict.outcome == WRONG)


def _known(state: Path) -> list[dict[str, Any]]:
    """What the state file holds; a last line that was cut off is done again."""
    if not state.exists():
        return []
    lines = state.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        state.write_text("\n".join(lines[:-1]) + "\n" * (len(lines) > 1), encoding="utf-8")
    return [json.loads(line) for line in lines[:-1]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m audit", description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, help="default: all of them, one after the other")
    parser.add_argument("--draws", type=int, default=0, help="how many of a subject; 0: as the minutes hold")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, all subjects together")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="audit-out", help="where state and failing cases are kept")
    parser.add_argument("--replay", metavar="CASE", help="run a failing case again")
    asked = parser.parse_args()
    if asked.draws and asked.minutes == parser.get_default("minutes"):
        asked.minutes = float("inf")
    return asked


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
