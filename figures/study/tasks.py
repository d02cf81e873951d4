"""Tasks of a study: a training, or a computation on trained networks; what identifies one, and how it is run.

A task is identified by a hash of everything that determines its outcome, with every default filled in: a default that
changes makes another configuration. What a hash cannot see is an algorithm that changed: `RESULTS_VERSION` and the
methods' `revision` stand for those.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import landscape
from figures.study.figure_data import load_facts, save_arrays
from landscape.errors import InputError
from landscape.files import read_json, write_json
from landscape.results import digest
from landscape.results.result import plain
from trainers import METHODS

if TYPE_CHECKING:
    from trainers.rebuild import Subject

RESULTS_VERSION = 1
"""Raised when trainers or measures change what they compute: everything kept before counts as another configuration.

Where the algorithm of one method changed, its `revision` among the facts of its registration is raised instead.
"""

FREE = ("save_every", "data_dir")
"""Settings that change no number. Which checkpoints are kept does change what can be measured."""


@dataclass(frozen=True)
class Machine:
    """What a task is run on, which changes no number but times: the device, and where data files lie."""

    device: str = "cpu"
    data_dir: str | None = None

    def subject(self, path: Path, **sample: Any) -> Subject:
        """A checkpoint brought back to life here, over the examples that `trainers.rebuild.Sample` describes."""
        from trainers.rebuild import Sample, subject

        return subject(path, Sample(data_dir=self.data_dir, **sample), device=self.device)


@dataclass(frozen=True)
class Training:
    """One training run; `settings` are those of `trainers.loop.settings.Settings`, seed included."""

    method: str
    arguments: dict[str, Any]
    settings: dict[str, Any]

    timed = property(lambda self: self.settings.get("budget_seconds") is not None)

    @functools.cached_property
    def configuration(self) -> dict[str, Any]:
        """All that determines the outcome, defaults filled in: of the method, the settings, the network, the data."""
        from trainers.data import DATA
        from trainers.loop.settings import Settings
        from trainers.models import MODELS

        method = METHODS[self.method](**self.arguments)
        settings = {k: v for k, v in Settings(**self.settings).resolved(method.base).plain.items() if k not in FREE}
        settings |= {"data": _named(DATA, settings["data"]), "model": _named(MODELS, settings["model"])}
        revision = METHODS.entry(self.method).facts.get("revision")
        return {"method": self.method, "revision": revision, "arguments": method.arguments, "settings": settings}

    @functools.cached_property
    def key(self) -> str:
        """Hash of the configuration."""
        return _hash(self.configuration)

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return f"{self.method}-{re.split('[:,]', self.settings.get('data', 'digits'))[0]}-{self.key}"

    def run(self, path: Path, machine: Machine) -> None:
        """Train into the directory `path`, from the last checkpoint there if there is one."""
        from trainers import train

        settings = {**self.settings, "data_dir": machine.data_dir}
        train(METHODS[self.method](**self.arguments), out=path, resume=True, device=machine.device, **settings)


@dataclass(frozen=True)
class Computation:
    """A function of trained networks: function(*run directories, **arguments) -> name -> number or array.

    It is also given the `machine`, if it has a parameter of that name.

    Attributes:
        function: "module:name".
        trainings: what it reads.
        arguments: plain values.
        timed: it measures time: runs alone.
    """

    function: str
    trainings: tuple[Training, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    timed: bool = False

    @functools.cached_property
    def key(self) -> str:
        """Hash of what determines the outcome, the function's own text included."""
        runs = [t.key for t in self.trainings]
        text, arguments = source(self._callable), _with_defaults(self.arguments)
        return _hash({"function": self.function, "text": text, "runs": runs, "arguments": arguments})

    @property
    def name(self) -> str:
        """Name of the result's file, without suffix."""
        return f"{self.function.split(':')[1].strip('_')}-{self.key}"

    @property
    def _callable(self) -> Callable[..., dict[str, Any]]:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)

    def run(self, inputs: Sequence[Path], machine: Machine) -> dict[str, Any]:
        """What the function returns for these run directories."""
        takes_machine = "machine" in inspect.signature(self._callable).parameters
        return self._callable(*inputs, **self.arguments, **({"machine": machine} if takes_machine else {}))


Task = Training | Computation


def needed(task: Task) -> tuple[Training, ...]:
    """The trainings that have to be finished before."""
    return task.trainings if isinstance(task, Computation) else ()


def run_task(task: Task, path: Path, inputs: Sequence[Path], machine: Machine) -> str:
    """Run one task and put its outcome, with what it cost, at `path`; returns its name."""
    started = time.perf_counter(), time.process_time()
    if isinstance(task, Training):
        task.run(path, machine)
        write_json(path / "done.json", {"key": task.key, "landscape": landscape.__version__, **_spent(started)})
    else:
        arrays = task.run(inputs, machine)
        facts = {"function": task.function, "arguments": task.arguments, "runs": [p.name for p in inputs]}
        save_arrays(path, arrays, {**facts, **_spent(started)})
    return task.name


def read_cost(path: Path) -> dict[str, float]:
    """What the task whose outcome lies at `path` cost: `seconds` by the clock, `processor_seconds` of one core.

    Of a training that was interrupted they are those of its last part; 0 where an older version kept none.
    """
    facts = read_json(path / "done.json") if path.is_dir() else load_facts(path)
    spent = {k: facts.get(k, 0.0) for k in ("seconds", "processor_seconds")}
    if not all(isinstance(v, int | float) for v in spent.values()):
        raise InputError(f"{path} does not say in numbers what it cost: delete it and run again")
    return spent


def _spent(started: tuple[float, float]) -> dict[str, float]:
    wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    return {"seconds": round(wall, 3), "processor_seconds": round(processor, 3)}


@functools.cache
def source(function: Callable[..., Any]) -> str:
    """Text of a function and of the functions of its own module that it calls.

    It is read once per process: a file that is edited afterwards is not the code that runs.
    """
    module = inspect.getmodule(function)
    called: dict[str, Callable[..., Any]] = {}
    waiting = [function]
    while waiting:
        one = waiting.pop()
        called[one.__qualname__] = one
        named = [getattr(module, name, None) for name in _names(one.__code__)]
        beside = [f for f in named if inspect.isfunction(f) and f.__module__ == function.__module__]
        waiting += [f for f in beside if f.__qualname__ not in called]
    return "\n".join(inspect.getsource(called[name]) for name in sorted(called))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _named(registry: Any, text: str) -> dict[str, Any]:
    """NAME:key=value,... with every option of the data set or network; seed and label noise as they are given.

    Of a data set in a file, what it holds counts, not where it lies.
    """
    from trainers.names import checked_arguments, parse_name

    name, arguments = parse_name(text)
    entry = registry.entry(name.partition(":")[0])
    path = Path(name.partition(":")[2])
    if entry.facts.get("file") and path.is_file():
        name = f"{entry.name}:{_content(path, path.stat().st_size, path.stat().st_mtime_ns)}"
    options = {o.name: arguments[o.name] for o in entry.options if o.name in arguments}
    return {"name": name, **arguments, **checked_arguments(entry, options)}


@functools.cache
def _content(path: Path, _size: int, _changed: int) -> str:
    """SHA-256 of a file as it is now."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _with_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a computation; those of measures (`wanted`) with the defaults of each."""
    if "wanted" not in arguments:
        return dict(arguments)
    entries = landscape.MEASURES.entries
    wanted = {
        name: {**{o.name: o.default for o in entries[name].options}, **stated}
        for name, stated in arguments["wanted"].items()
    }
    return {**arguments, "wanted": wanted}


def _hash(content: Mapping[str, Any]) -> str:
    return digest.of_configuration(plain({**content, "version": RESULTS_VERSION}))[:16]
