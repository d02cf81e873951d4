"""What a GPU does with this toolkit, in bounded time: (a) the `gpu` tests, (b) tables of costs, (c) trainings.

    python benchmarks/gpu.py --minutes 9 [--part a] [--out gpu-out] [--write docs/performance.md]
    python benchmarks/gpu.py --minutes 9 --part c --data-dir FOLDER    # Fashion-MNIST and, where there, cifar10.npz
    python benchmarks/gpu.py --minutes 1 --tiny          # the same code at tiny sizes, on a CPU too

It needs torch with CUDA and what `landscape` imports, no network and no installation. The most telling things come
first; what does not fit into the minutes that are left is skipped and said, what fails leaves its error and the others
go on. Every result is in gpu.json at once, and the same command goes on with what is missing there: measured on another
machine, of another size, or named by --again (a shell pattern, such as 'b/*'), a result is measured anew.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import importlib.util
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDED = ("torch", "numpy", "scipy", "h5py", "click", "rich", "matplotlib", "sklearn")
"""What this imports, directly or through `landscape`."""


def require_modules() -> None:
    """End with one line where a module is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join("scikit-learn" if name == "sklearn" else name for name in missing)
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}: {sys.executable} -m pip install {names}")


require_modules()
from timing import machine  # noqa: E402  isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch  # noqa: E402
from gpu_parts import page  # noqa: E402
from gpu_parts.items import ITEMS  # noqa: E402
from gpu_parts.measuring import free  # noqa: E402
from gpu_parts.sizes import FULL, TINY, Sizes  # noqa: E402
from gpu_parts.studies import Piece, Studies  # noqa: E402
from gpu_parts.tests import run_tests  # noqa: E402

from figures.study import recipes  # noqa: E402
from landscape.files import read_json, write_json  # noqa: E402
from landscape.results.result import plain  # noqa: E402

LEAST_SECONDS, MOST_TIMES = 60.0, 3.0
"""An item is stopped when it has taken so many seconds and so many times what it is expected to take at full size."""

DRAWING_SECONDS = 40.0
"""For the figures at the end."""


class OutOfTime(BaseException):
    """Raised within an item when its time is over; no `except Exception` holds it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread when the context has lasted so long."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Work:
    """One thing to do: its name in the record, the seconds that it takes at full size, and what returns its entry.

    `done` says whether it has been, where files say so and not the record of this machine; such work goes on from its
    files, and is begun where a whole call would be too short for it.
    """

    name: str
    seconds: float
    run: Callable[[float], dict[str, Any]]
    done: Callable[[], bool] | None = None


@dataclass
class Session:
    """A call: until when it lasts, where it runs, and the record that it adds to.

    Attributes:
        file: gpu.json.
        sizes: of everything.
        device: CUDA, or a CPU.
        end: `time.monotonic` at which all is to be over.
        again: patterns of results that are measured anew.
    """

    file: Path
    sizes: Sizes
    device: torch.device
    end: float
    again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content: dict[str, Any] = read_json(self.file) if self.file.exists() else {}
        for part in ("items", "left"):
            self.content.setdefault(part, {})
        self.origin = {"machine": machine(), "sizes": self.sizes.name}
        self.length = self.remaining

    @property
    def remaining(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def has(self, name: str) -> bool:
        """Whether the record holds this result of this machine, without an error."""
        entry = self.content["items"].get(name, {})
        anew = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.again)
        return not anew and "error" not in entry and all(entry.get(k) == v for k, v in self.origin.items())

    def do(self, work: Work) -> None:
        """Run it where it is missing and fits; the record is on disk afterwards."""
        if self.has(work.name) if work.done is None else work.done():
            if "error" in self.content["items"].get(work.name, {}):  # of this machine; another has done it since
                del self.content["items"][work.name]
            print(f"{work.name}: measured before", flush=True)
            return
        expected = work.seconds * self.sizes.share
        if expected > self.remaining and (work.done is None or expected <= self.length):
            self.skip(work.name, f"needs about {expected:.0f} s, {max(self.remaining, 0):.0f} s were left")
            return
        limit = max(min(self.remaining, max(LEAST_SECONDS, MOST_TIMES * work.seconds)), 2.0)
        print(f"{work.name}: expected {expected:.0f} s, {self.remaining:.0f} s are left", flush=True)
        start = time.monotonic()
        entry: dict[str, Any] = {}
        try:
            with within(limit):
                entry = work.run(limit)
        except OutOfTime as error:
            entry = {"error": str(error)}
        except Exception as error:
            said = (str(error) or type(error).__name__).splitlines()[0][:300]
            entry = {"error": f"{type(error).__name__}: {said}", "traceback": traceback.format_exc()[-4000:]}
        entry |= {**self.origin, "seconds": round(time.monotonic() - start, 2)}
        self.content["items"][work.name] = plain(entry)
        self.content["left"].pop(work.name, None)
        self.save()
        print(f"{work.name}: {entry.get('error', 'done')} ({entry['seconds']:.1f} s)", flush=True)
        with contextlib.suppress(Exception):  # a device that an error left unusable says so again in the next item
            free(self.device)

    def save(self) -> None:
        """Write the record."""
        write_json(self.file, {**self.content, "last": self.origin})

    def skip(self, name: str, reason: str) -> None:
        """Say, and record, why something was not done."""
        self.content["left"][name] = reason
        self.save()
        print(f"{name}: skipped, {reason}", flush=True)


def measuring(session: Session, name: str) -> Work:
    """An item of part b."""
    item = ITEMS[name]

    def run(_limit: float) -> dict[str, Any]:
        rows = item.measure(session.sizes, session.device)
        print(page.table_of(item.header, rows), flush=True)
        return {"header": list(item.header), "rows": rows}

    return Work(f"b/{name}", item.seconds, run)


def train_studies(session: Session, studies: Studies) -> None:
    """Part c: the speed of this machine, then one piece of the studies after the other; figures of what is complete."""
    if reason := studies.lacks():
        session.skip("c/studies", reason)
        return
    if note := recipes.lacking(studies.whole):
        print(note, flush=True)
    studies.unpack()
    session.do(Work("c/speed", 30, lambda limit: studies.speed()))
    speed = session.content["items"].get("c/speed", {})

    def run(piece: Piece) -> dict[str, Any]:
        studies.do(piece)
        studies.pack()
        return {}

    whole = session.end
    session.end -= (DRAWING_SECONDS + 5) * session.sizes.share  # kept for what follows
    for piece in studies.pieces:
        seconds = studies.expected(piece, speed)
        done = functools.partial(studies.done, piece)
        session.do(Work(f"c/{piece.name}", seconds, lambda limit, p=piece: run(p), done))
    session.end = whole
    session.do(Work("c/studies", 0.0, lambda limit: studies.table(), lambda: False))
    session.do(Work("c/figures", DRAWING_SECONDS, lambda limit: studies.figures(), lambda: False))


def main() -> int:
    """Run, write gpu.json and gpu.md, print the tables; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="everything is over after so long; 0 prints the tables"
    )
    parser.add_argument("--part", choices=["a", "b", "c"], help="default all, one after the other")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of gpu.json, gpu.md, studies.tar.gz")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="folder of the trainings, gigabytes")
    parser.add_argument("--data-dir", type=Path, help="where data files lie; default $LANDSCAPE_DATA")
    parser.add_argument("--again", nargs="+", default=[], metavar="PATTERN", help="results to measure anew")
    parser.add_argument("--write", type=Path, help="put the tables into this Markdown file, between their marks")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny and options.minutes > 0:
        sys.exit(f"torch {torch.__version__} sees no CUDA device: --tiny runs the same at tiny sizes on this CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = TINY if options.tiny else FULL
    end = time.monotonic() + 60 * options.minutes
    session = Session(options.out / "gpu.json", sizes, device, end, options.again)
    print(machine(), flush=True)
    parts = [options.part] if options.part else ["a", "b", "c"]
    if "a" in parts and options.minutes > 0:
        session.do(Work("a/tests", 90, lambda limit: run_tests(session.sizes, limit)))
    if "b" in parts and options.minutes > 0:
        for name in ITEMS:
            session.do(measuring(session, name))
    if "c" in parts and options.minutes > 0:
        data = None if options.data_dir is None else str(options.data_dir)
        train_studies(session, Studies(options.work, options.out / "studies.tar.gz", sizes, device, data))
    text = page.text(session.content)
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if options.write:
        page.put(options.write, text)
    return int(any("error" in entry for entry in session.content["items"].values()))


if __name__ == "__main__":
    sys.exit(main())
