"""The command lines that are tortured: small ones of every command that computes, each with what goes on with it."""

from __future__ import annotations

from dataclasses import dataclass

from trainers import METHODS

NETWORK = "mlp:hidden=8,batch_norm=true"
DATA = "toy2d:n=200,n_test=100"
TRAIN = f"--data {DATA} --model {NETWORK} --epochs 8 --batch-size 40 --quiet --device cpu"
_SHARED = "--quiet --device cpu --out out"
_MEASURES = "--grid 0 --measure sam_sharpness --measure hessian_trace --measure gradient_norm"
FIRST, SECOND = "{inputs}/first/ckpt.pt", "{inputs}/second/ckpt.pt"


@dataclass(frozen=True)
class Command:
    """A command line that writes to `out`.

    Attributes:
        line: with {inputs} for the folder of the workshop's inputs.
        go_on: what is added to go on with what is there; commands without a word for that do so anyway, or begin anew.
        cold: what is added where it runs as a user runs it.
    """

    line: str
    go_on: str = ""
    cold: str = ""

    def arguments(self, inputs: str, *, resumed: bool = False, cold: bool = False) -> list[str]:
        """Behind `landscape`."""
        parts = [self.line.format(inputs=inputs), self.go_on if resumed else "", self.cold if cold else ""]
        return " ".join(parts).split()


COMMANDS = {
    **{f"train {name}": Command(f"train {name} {TRAIN} --out out", "--resume") for name in METHODS},
    "average": Command(f"train sgd {TRAIN} --average swa --keep-every 2 --out out", "--resume"),
    "analyze": Command(f"analyze {FIRST} --samples 100 --grid 5 --measure sam_sharpness {_SHARED}"),
    "analyze two": Command(f"analyze {FIRST} {SECOND} --samples 100 --subsets 0 {_MEASURES} {_SHARED}"),
    "analyze run": Command(f"analyze {{inputs}}/first --samples 100 --subsets 0 {_MEASURES} {_SHARED}"),
    "surface": Command(f"surface {FIRST} --grid 15 --gradient-norm --samples 100 {_SHARED}", "--resume"),
    "path": Command(f"path {FIRST} {SECOND} --curve bezier --epochs 2 --points 5 --samples 100 {_SHARED}"),
    "invariance": Command(
        f"invariance {FIRST} --transforms 6 --steps 1 --samples 40 -p 2 --no-eigenvalues {_SHARED}", "--resume"
    ),
    "figures": Command(f"figures asam-fig1 --seeds 1 --workers 1 {_SHARED}", cold="--workers 2"),
}
NAMES = ("train", "analyze", "surface", "path", "invariance", "figures", "average")
SHARED = ("surface", "analyze two", "analyze run", "invariance", "figures")
"""Those that processes can share by --shard."""


def drawn(seed: int) -> str:
    """A command for a seed: all in turn, and of train all methods in turn."""
    name, methods = NAMES[seed % len(NAMES)], list(METHODS)
    return f"train {methods[seed // len(NAMES) % len(methods)]}" if name == "train" else name
