"""`make torture`: cases by seed until time or number is reached, goes on where it was stopped, prints a table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process has one thread
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torture.verdict import FAILED, Verdict, table
from torture.workshop import Workshop

_MANY = 20
SUBJECTS = ("kills", "damage", "hostile", "disk", "interrupts", "together", "shards")


def main() -> int:
    """Run; 0 where nothing failed."""
    asked = _arguments()
    workshop = Workshop(warm=not (0 < asked.draws < _MANY or asked.replay))
    try:
        if asked.replay:
            return _replay(asked.replay, workshop)
        return max([_torture(subject, asked, workshop) for subject in asked.subject or SUBJECTS])
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 130
    finally:
        workshop.remove()


def _torture(subject: str, asked: argparse.Namespace, workshop: Workshop) -> int:
    """The cases of one subject."""
    out = Path(asked.out)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    state = out / f"{subject}.jsonl"
    known = _known(state)
    seed = max((v["seed"] for v in known), default=asked.first - 1) + 1
    deadline = time.monotonic() + 60 * asked.minutes / len(asked.subject or SUBJECTS)
    print(f"{subject}: seeds from {seed}, {len(known)} cases known in {state}", flush=True)
    with state.open("a", encoding="utf-8") as log:
        while seed < asked.first + asked.draws if asked.draws else time.monotonic() < deadline:
            choice = importlib.import_module(f"torture.subjects.{subject}").choose(seed)
            if asked.command and choice.get("command", asked.command[0]).split(" ")[0] not in asked.command:
                seed += 1
                continue
            case = {"subject": subject, "seed": seed, "choice": choice, **_played(subject, choice, workshop).plain()}
            known.append(case)
            log.write(json.dumps({k: case[k] for k in ("seed", "kind", "outcome", "tries", "texts")}) + "\n")
            log.flush()
            if case["outcome"] == FAILED:
                _keep(out / "cases" / f"{subject}-{seed}.json", case)
            seed += 1
    print(f"\n{subject}, seeds {asked.first} to {seed - 1}:\n\n{table(known)}\n", flush=True)
    return int(any(v["outcome"] == FAILED for v in known))


def _played(subject: str, choice: dict[str, Any], workshop: Workshop) -> Verdict:
    verdict: Verdict = importlib.import_module(f"torture.subjects.{subject}").play(choice, workshop)
    if any(Path(path).read_bytes() != content for path, content in workshop.tree.items()):
        verdict.fail("an input was changed")
    return verdict


def _keep(file: Path, case: dict[str, Any]) -> None:
    file.write_text(json.dumps(case, indent=1), encoding="utf-8")
    print(f"FAILED, seed {case['seed']}: {'; '.join(case['texts'])[:600]}\n  {file}", flush=True)


def _replay(file: str, workshop: Workshop) -> int:
    case = json.loads(Path(file).read_text(encoding="utf-8"))
    verdict = _played(case["subject"], case["choice"], workshop)
    print(json.dumps(verdict.plain(), indent=1))
    return int(verdict.outcome == FAILED)


def _known(state: Path) -> list[dict[str, Any]]:
    """What the state file holds; a last line that was cut off is done again."""
    if not state.exists():
        return []
    lines = state.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        state.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    return [json.loads(line) for line in lines[:-1]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="repeatable; default all")
    parser.add_argument("--command", action="append", help="only cases of this command; repeatable; default all")
    parser.add_argument("--draws", type=int, default=0, help="cases of a subject in all; 0: what the minutes hold")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, shared by the subjects")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", default="torture-out", help="where state and failing cases are kept")
    parser.add_argument("--replay", metavar="CASE", help="run a failing case again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
