"""Every method against the sum of its own bare passes (bar 1.03x), and against SGD, interleaved in one run.

Bare passes are hand-written: model, cross-entropy, backward, at the batch sizes that the method uses; the optimizer's
step, perturbations, rankings, stores and averages are what the ratio is about. On a CPU the clock is CPU time, which
does not count what others do on the machine; on a GPU it is the wall clock up to a synchronization.

A method, its bare passes and, where pytorch_optimizer is installed and has it, that one's step run forth and back in
every round (A B C, C B A). Ratios are medians over rounds with a 95% interval: the bar is met where the whole interval
lies below it.

On a machine that others use heavily, times of two arms differ by ten percent for no reason of ours. --within measures
instead how much of a method's own steps is spent outside the model and backward: contention stretches both alike.

    python benchmarks/methods.py --minutes 10
    python benchmarks/methods.py --within
    python benchmarks/methods.py --device cuda --model resnet50 --size 224 --precision bfloat16
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from timing import interval, machine, palindromes, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
import torch.nn.functional as F

from landscape.problem.batches import Batch
from trainers import METHODS, Context, Step, Task
from trainers.models import build_model
from trainers.names import parse_name

BAR = 1.03
BARRED = ["sgd", "sam", "asam", "gsam", "gnp", "looksam", "rst", "saf", "mesa", "k-sam", "esam", "subset-sam"]
POSTER = {"sam": "49-50", "esam": "64", "looksam": "83", "gsam": "48", "saf": "99", "mesa": "85"}
# Within a few steps: the term of SAF and MESA on, K-SAM at a third of the batch, RST at one SAM step in two.
ARGUMENTS: dict[str, dict[str, object]] = {
    "saf": {"start": 0.0, "lag": 1},
    "mesa": {"start": 0.0},
    "rst": {"p_schedule": "constant"},
    "g-rst": {"p_schedule": "constant"},
}
STEPS = {"looksam": 5, "rst": 2, "g-rst": 2}


class Examples:
    """A training set of random images on the device."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, classes: int) -> None:
        self.x, self.y, self.examples, self.classes = x, y, len(x), classes

    def batch(self, indices: torch.Tensor) -> Batch:
        """The examples with these indices."""
        return Batch((self.x[indices],), {}, self.y[indices], len(indices))


@dataclass
class Bench:
    """One network, one batch."""

    model: torch.nn.Module
    batch: Batch
    examples: Examples
    precision: str

    @classmethod
    def of(cls, model: str, side: int, size: int, device: str | torch.device, precision: str) -> Bench:
        """A built-in network (NAME[:key=value,...]) and `size` random images of that side, channels last."""
        classes = 1000 if side > 64 else 10
        x = torch.randn(2 * size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        y = torch.randint(0, classes, (len(x),), device=device)
        name, arguments = parse_name(model)
        network = build_model(name, classes=classes, input_shape=x.shape[1:], **arguments).to(device)
        first = Batch((x[:size],), {}, y[:size], size)
        return cls(network.to(memory_format=torch.channels_last), first, Examples(x, y, classes), precision)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.batch.target.device

    def method(self, name: str) -> Callable[[], None]:
        """A cycle of optimization steps of the method."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        loss = torch.nn.CrossEntropyLoss(reduction="none")
        task = Task(self.model, loss, optimizer=optimizer, precision=self.precision)
        method = METHODS[name](**ARGUMENTS.get(name, {}))
        count = 0

        def context() -> Context:
            progress, rate = 0.5, {"lr": 0.05, "lr_max": 0.1, "lr_min": 0.0}
            where = {"epoch": 1 + count, "step": count % STEPS.get(name, 1), "steps_per_epoch": 100}
            size = self.batch.size
            return Context(**where, **rate, progress=progress, batch_size=size, training_set=self.examples)

        state = method.init(task, context())
        indices = torch.arange(self.batch.size, device=self.device)

        def cycle() -> None:
            nonlocal count
            for _ in range(STEPS.get(name, 1)):
                step = task.step(self.batch, context(), indices=indices)
                method.gradient(step, state)
                optimizer.step()
                method.after_step(step, state)
                count += 1
            self.finish()

        return cycle

    def bare(self, passes: list[tuple[str, int]]) -> Callable[[], None]:
        """The same passes, written by hand."""
        parameters = list(self.model.parameters())
        dtype = None if self.precision == "float32" else getattr(torch, self.precision)
        x, y = self.batch.args[0], self.batch.target

        def cast() -> contextlib.AbstractContextManager:
            return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

        def cycle() -> None:
            for kind, size in passes:
                if kind == "forward":
                    with torch.no_grad(), cast():
                        F.cross_entropy(self.model(x[:size]), y[:size])
                    continue
                for parameter in parameters:
                    parameter.grad = None
                with cast():
                    loss = F.cross_entropy(self.model(x[:size]), y[:size])
                loss.backward()
            self.finish()

        return cycle

    def peer(self, name: str) -> Callable[[], None] | None:
        """The same method of pytorch_optimizer, where that is installed and has it."""
        try:
            import pytorch_optimizer
        except ImportError:
            return None
        parameters, base = list(self.model.parameters()), torch.optim.SGD
        options = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
        if name in ("sam", "asam"):
            made = pytorch_optimizer.SAM(parameters, base, adaptive=name == "asam", **options)
        elif name == "looksam":
            made = pytorch_optimizer.LookSAM(parameters, base, k=STEPS["looksam"], **options)
        elif name == "friendly-sam":
            made = pytorch_optimizer.FriendlySAM(parameters, base, **options)
        elif name == "wsam":
            made = pytorch_optimizer.WSAM(self.model, parameters, base, **options)
        elif name == "gsam" and self.precision == "float32":
            inner = base(parameters, **options)
            made = pytorch_optimizer.GSAM(parameters, inner, self.model, _Radius(), alpha=0.01)
            made.set_closure(F.cross_entropy, self.batch.args[0], self.batch.target)
        else:
            return None
        x, y = self.batch.args[0], self.batch.target
        dtype = None if self.precision == "float32" else getattr(torch, self.precision)

        def closure() -> torch.Tensor:
            made.zero_grad()
            with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        def cycle() -> None:
            for _ in range(STEPS.get(name, 1)):
                if name == "gsam":  # has its closure, and calls it for both passes
                    made.step()
                else:
                    closure()
                    made.step(closure)
            self.finish()

        return cycle

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Radius:
    """What pytorch_optimizer's GSAM asks its radius of."""

    def step(self) -> float:
        """The radius."""
        return 0.04


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, int]]]:
    """The passes that steps make within the context: (kind, examples)."""
    passes: list[tuple[str, int]] = []
    names = {"forward": "forward", "outputs_with": "forward", "backward": "backward"}
    originals = {name: getattr(Step, name) for name in names}

    def wrap(name: str) -> Callable:
        def made(self, *args, **options):  # type: ignore[no-untyped-def]
            rows = options.get("rows")
            passes.append((names[name], self.batch.size if rows is None else len(rows.index)))
            return originals[name](self, *args, **options)

        return made

    for name in names:
        setattr(Step, name, wrap(name))
    try:
        yield passes
    finally:
        for name, original in originals.items():
            setattr(Step, name, original)


def within(bench: Bench, names: list[str], rounds: int, clock: Callable[[], float]) -> str:
    """Seconds of whole optimization steps over those spent in the model's forward and in backward, method by method.

    The loss, the optimizer's step, perturbations, rankings, stores and averages all count as overhead.
    """
    spent, started = 0.0, 0.0
    backward = torch.Tensor.backward

    def start(*_: object) -> None:
        nonlocal started
        started = clock()

    def stop(*_: object) -> None:
        nonlocal spent
        bench.finish()
        spent += clock() - started

    def timed(self: torch.Tensor, *args: object, **options: object) -> None:
        start()
        backward(self, *args, **options)
        stop()

    handles = [bench.model.register_forward_pre_hook(start), bench.model.register_forward_hook(stop)]
    torch.Tensor.backward = timed  # type: ignore[method-assign]
    rows: list[list[object]] = []
    try:
        for name in names:
            cycle = bench.method(name)
            cycle()
            spent, total = 0.0, 0.0
            for _ in range(rounds):
                begun = clock()
                cycle()
                total += clock() - begun
            verdict = "" if name not in BARRED else "yes" if total / spent <= BAR else "no"
            rows.append([name, f"{total / spent:.4f}", verdict])
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()
    return table(rows, ["method", "step / its forwards and backwards", f"<= {BAR}"])


def main() -> None:
    """Print the table, and write it where --write says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--minutes", type=float, default=5.0, help="rounds are begun for so long")
    parser.add_argument("--rounds", type=int, default=7, help="of --within; at least so many otherwise")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", type=Path, help="append the table to this Markdown file")
    parser.add_argument("--within", action="store_true", help="only the share of each step outside its passes")
    arguments = parser.parse_args()
    names = ["sgd", *(n for n in arguments.methods.split(",") if n != "sgd")]
    bench = Bench.of(arguments.model, arguments.size, arguments.batch_size, arguments.device, arguments.precision)
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    if arguments.within:
        shares = within(bench, names, arguments.rounds, clock)
        text = f"\n{heading(arguments)}: within the step\n\n{machine()}\n\n{shares}\n"
    else:
        seconds = palindromes(groups_of(bench, names), 60 * arguments.minutes, clock, arguments.rounds)
        text = report(seconds, arguments)
    print(text)
    if arguments.write:
        with open(arguments.write, "a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def groups_of(bench: Bench, names: list[str]) -> dict[str, dict[str, Callable[[], None]]]:
    """A method, its bare passes, and where there is one its peer, for every name."""
    groups: dict[str, dict[str, Callable[[], None]]] = {}
    for name in names:
        step = bench.method(name)
        step()  # stores are filled, momentum exists
        with recorded() as passes:
            step()
        groups[name] = {"step": step, "bare": bench.bare(passes)}
        peer = bench.peer(name)
        if peer is not None:
            groups[name]["peer"] = peer
    return groups


def heading(arguments: argparse.Namespace) -> str:
    """What is run."""
    return (
        f"## {arguments.model}, {arguments.size}x{arguments.size}, batch {arguments.batch_size}, {arguments.precision}"
    )


HEADER = ["method", "seconds a step", "of SGD", "speed, % of SGD", "poster, %"]
HEADER += ["of its bare passes", f"<= {BAR}", "of pytorch_optimizer's"]


def rows(seconds: dict[str, dict[str, list[float]]]) -> list[list[object]]:
    """One row per method, with the columns of `HEADER`."""
    made: list[list[object]] = []
    for name, arms in seconds.items():
        cycle = STEPS.get(name, 1)
        step = [value / (2 * cycle) for value in arms["step"]]
        relative = interval(step, [value / 2 for value in seconds["sgd"]["step"]]).value
        bare = interval(arms["step"], arms["bare"])
        verdict = bare.verdict(BAR) if name in BARRED else ""
        beside = str(interval(arms["step"], arms["peer"])) if "peer" in arms else ""
        speeds = [f"{min(step):.4f}", f"{relative:.2f}", f"{100 / relative:.0f}", POSTER.get(name, "")]
        made.append([name, *speeds, str(bare), verdict, beside])
    return made


def report(seconds: dict[str, dict[str, list[float]]], arguments: argparse.Namespace) -> str:
    """What was run where, and one row per method."""
    clock, rounds = "CPU time" if arguments.device == "cpu" else "wall clock", len(seconds["sgd"]["step"])
    return f"\n{heading(arguments)}: {clock}, {rounds} rounds\n\n{machine()}\n\n{table(rows(seconds), HEADER)}\n"


if __name__ == "__main__":
    main()
