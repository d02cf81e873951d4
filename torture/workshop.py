"""What cases are made of: trained networks, and what every command line writes when nothing happens to it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.results import hdf5_process
from torture.commands import COMMANDS, TRAIN
from torture.contents import contents
from torture.process import Changes, run

WARM = (
    *("cli", "figures.page.report", "figures.drawing.static", "figures.drawing.surface", "figures.drawing.loss_path"),
    *("figures.drawing.invariance", "figures.study.figure", "figures.study.study", "trainers.rebuild", "trainers.loop"),
)


@dataclass(frozen=True)
class Whole:
    """What a command does and writes when nothing happens to it.

    Attributes:
        folder: where its `out` lies.
        contents: of that.
        changes: that it made to the file system.
        seconds: that it took.
    """

    folder: Path
    contents: dict[str, Any]
    changes: int
    seconds: float


class Workshop:
    """Inputs and whole runs, made when they are first asked for; a folder that is removed in the end.

    Args:
        warm: import and set up everything first, which pays for many cases.
    """

    def __init__(self, warm: bool = True) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="torture-"))
        self._whole: dict[str, Whole] = {}
        self.specimens: dict[str, tuple[Path, Any]] = {}
        self._cases = 0
        import trainers.loop.loop
        import trainers.rebuild  # noqa: F401

        if warm:
            self._warm_up()

    @functools.cached_property
    def inputs(self) -> Path:
        """Folder of two trained networks, first/ and second/."""
        folder = self.root / "inputs"
        folder.mkdir()
        for name, seed in (("first", 0), ("second", 1)):
            self.must(f"train sam {TRAIN} --keep-every 4 --seed {seed} --out {name}".split(), folder)
        return folder

    def _warm_up(self) -> None:
        """Have everything imported, and set up, that a process would import at its first need."""
        import cli

        for name in WARM:
            importlib.import_module(name)
        run_directory, shared = str(self.root / "warm"), "--quiet --device cpu"
        around = f"{run_directory}/ckpt.pt --grid 5 --samples 100 {shared}"
        with contextlib.redirect_stdout(io.StringIO()):
            for line in (
                f"train sgd {TRAIN} --epochs 1 --out {run_directory}",
                f"invariance --transforms 2 --steps 1 --no-eigenvalues {shared} --out {run_directory}/invariance",
                f"analyze {around} --measure sam_sharpness",
                f"surface {around}",
            ):
                cli.run(line.split())
        hdf5_process._stop()

    def must(self, arguments: list[str], folder: Path, **options: Any) -> None:
        """Run what has to succeed."""
        ended = run(arguments, folder, **options)
        if ended.status != 0:
            raise RuntimeError(f"landscape {' '.join(arguments)}: {ended.status}\n{ended.err}")

    def arguments(self, name: str, **how: bool) -> list[str]:
        """Of a command of `COMMANDS`."""
        return COMMANDS[name].arguments(str(self.inputs), **how)

    def whole(self, name: str) -> Whole:
        """The command as it ends when nothing happens to it."""
        if name not in self._whole:
            folder, changes = self.folder(), Changes()
            ended = run(self.arguments(name), folder, before=changes.then(0))
            if ended.status != 0:
                raise RuntimeError(f"landscape {name}: {ended.status}\n{ended.err}")
            self._whole[name] = Whole(folder, contents(folder / "out"), changes.count, ended.seconds)
        return self._whole[name]

    def folder(self) -> Path:
        """A new one."""
        self._cases += 1
        folder = self.root / f"case-{self._cases}"
        folder.mkdir()
        return folder

    def remove(self, folder: Path | None = None) -> None:
        """Of a case, or all of it."""
        shutil.rmtree(folder or self.root, ignore_errors=True)

    @functools.cached_property
    def tree(self) -> dict[str, bytes]:
        """The inputs' files as they are: no command changes them."""
        return {str(p): p.read_bytes() for p in self.inputs.rglob("*") if p.is_file()}
