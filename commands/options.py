"""Options that several commands share: groups of them as frozen records whose fields carry their click options."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from commands.claimed import check_writable
from commands.ranges import SEED, ShardType, Whole
from landscape.progress import is_shown, shown
from trainers.names import parse_argument, with_none_named
from trainers.references import import_callable, resolve_data, resolve_device, resolve_loss, resolve_model

if TYPE_CHECKING:
    import torch

    from landscape.problem.problem import Problem
    from trainers.rebuild import Subject

F = TypeVar("F", bound=Callable[..., Any])

_DEVICE = "cpu, cuda, cuda:1, ...; default: cuda where there is one."
_ADAPTER = {"alone": "adapter alone", "merged": "merged weights"}
"""Of an adapter's network: what is analyzed, and how it is labeled."""
_DATA_DIR = "Where data files lie; default $LANDSCAPE_DATA."
device = click.option("--device", default=None, help=_DEVICE)
data_dir = click.option("--data-dir", type=click.Path(), default=None, help=_DATA_DIR)
resume = click.option("--resume", is_flag=True, help="Continue with what is in the output directory.")
always_resumes = click.option("--resume", is_flag=True, expose_value=False, help="As always: what is done is reused.")

shard = click.option(
    "--shard",
    type=ShardType(),
    default=None,
    metavar="I/N",
    help="Be one of N processes that share the work in one --out, for job arrays; every one ends when all is done.",
)


def _show_progress(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if not context.resilient_parsing:
        context.with_resource(shown(not quiet))


quiet = click.option("--quiet", is_flag=True, expose_value=False, callback=_show_progress, help="No progress.")


def _fit(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is not None and not context.resilient_parsing:
        from figures.drawing import style

        context.with_resource(style.fitted(name))


venue = click.option(
    "--venue",
    type=click.Choice(["icml", "cvpr", "ieee", "neurips", "iclr", "jmlr", "tmlr"]),
    expose_value=False,
    callback=_fit,
    help="Draw figures for paper as wide as the columns and the text of that venue.",
)


def out(help: str) -> Callable[[F], F]:
    """--out with a command's own default."""
    return click.option("--out", type=click.Path(), default=None, help=help)


# -- groups ------------------------------------------------------------------------------------------------------------


def option(help: str | None, *names: str, **attributes: Any) -> Any:
    """A field of a group with what `click.option` takes; its own name is the flag where `names` gives none.

    Defaults are shown where they say something; a truth value makes a switch.
    """
    default = attributes.setdefault("default", () if attributes.get("multiple") else None)
    attributes = {"is_flag": isinstance(default, bool), "show_default": default is not False, **attributes}
    return dataclasses.field(default=default, metadata={"names": names, "attributes": {"help": help, **attributes}})


def group(kind: type, parameter: str, changes: Mapping[str, dict[str, Any]] | None = None) -> Callable[[F], F]:
    """Add a group's options to a command, which gets them as one record.

    Args:
        kind: a dataclass whose fields are made by `option`.
        parameter: of the command: the record.
        changes: field -> attributes of `click.option` that are different in this command.
    """
    fields = dataclasses.fields(kind)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def grouped(*arguments: Any, **values: Any) -> Any:
            record = kind(**{field.name: values.pop(field.name) for field in fields})
            return command(*arguments, **values, **{parameter: record})

        result: Any = grouped
        for field in reversed(fields):
            names = field.metadata["names"] or (f"--{field.name.replace('_', '-')}",)
            attributes = {**field.metadata["attributes"], **(changes or {}).get(field.name, {})}
            result = click.option(*names, field.name, **attributes)(result)
        return result

    return decorate


@dataclass(frozen=True)
class ProblemOptions:
    """Which function L(w) is analyzed, and where: the options of everything that reads a checkpoint."""

    model: str | None = option(
        "For a foreign checkpoint: a built-in network, torchvision:NAME, timm:NAME, hf:FOLDER (its config.json), or "
        "module:callable that returns the nn.Module.",
        metavar="NAME",
    )
    model_arg: tuple[str, ...] = option(
        "What the network is made with; repeatable.", multiple=True, metavar="KEY=VALUE"
    )
    data: str | None = option(
        "A built-in data set, npz:FILE, hdf5:FILE, pt:FILE, images:FOLDER, glue:FOLDER, hf:FOLDER (a data set of "
        "Hugging Face, saved to disk), text:FILE, or module:callable that returns batches.",
        metavar="NAME",
    )
    data_arg: tuple[str, ...] = option(
        "Options of the data set, see `landscape data list --options`, or of the callable; repeatable. Images and "
        "features take normalization=imagenet (cifar10, half, none, ...), or mean= and std=; hf: and text: "
        "tokenizer=FOLDER, length=128, text=COLUMN, label=COLUMN, split=NAME, task=NAME, mask=0.15.",
        multiple=True,
        metavar="KEY=VALUE",
    )
    loss: str | None = option(
        "cross-entropy, mse, bce, nll, own (what the model returns), or module:callable, called as loss(outputs, "
        "targets) with what the model returned; default cross-entropy of class labels, of hf: and text: own.",
        metavar="NAME",
    )
    objective: str | None = option(
        "In place of --loss: module:callable, called as objective(model, batch); returns loss or (loss, weight).",
        metavar="MODULE:CALLABLE",
    )
    key: str | None = option(
        "Which of the sets of weights in the file: its dotted name, such as ema or state_dict.model."
    )
    allow_missing: tuple[str, ...] = option(
        "Tensors of the model that the file may lack; repeatable.", multiple=True, metavar="GLOB"
    )
    allow_extra: tuple[str, ...] = option(
        "Tensors of the file that are left out; repeatable.", multiple=True, metavar="GLOB"
    )
    rename: tuple[str, ...] = option(
        "What the model calls a part of the names in the file; repeatable.", multiple=True, metavar="OLD=NEW"
    )
    adapter: str | None = option(
        "For an adapter (LoRA): its own parameters, or all weights with it merged into them; default alone; analyze "
        "shows both.",
        type=click.Choice(["alone", "merged"]),
    )
    split: str = option("Which part of the data.", type=click.Choice(["train", "test"]), default="train")
    samples: int | None = option("Examples of the fixed sample; default 4096, or all.", type=Whole())
    batch_size: int | None = option("Default: by the kind of network.", type=Whole())
    batch_norm: str = option(
        "Statistics: those of the trained network, of each batch, or estimated again at every point.",
        type=click.Choice(["frozen", "batch", "recalibrate"]),
        default="frozen",
    )
    parameters: tuple[str, ...] = option(
        "Only parameters whose names match; repeatable.", multiple=True, metavar="GLOB"
    )
    dtype: str = option(
        "Precision of the network.", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32"
    )
    data_dir: str | None = option(_DATA_DIR, type=click.Path())
    device: str | None = option(_DEVICE)
    seed: int = option("Seed of every draw.", type=SEED, default=0)

    def require_readable(self, paths: Sequence[Path]) -> None:
        """Read every checkpoint before anything is made of the first.

        Raises:
            InputError: one is missing, damaged or no checkpoint.
        """
        from landscape import checkpoint

        for path in paths[1:]:  # the first one is read first in any case
            (checkpoint.contents if self.model else checkpoint.read)(path)

    def subject(self, path: Path) -> Subject:
        """A checkpoint brought back to life as these options say."""
        import torch

        from landscape.checkpoint import Selection
        from trainers.rebuild import Sample, subject

        data_arguments = dict(map(parse_argument, self.data_arg))
        data = resolve_data(self.data, data_arguments)
        return subject(
            path,
            Sample(
                data=data,
                data_arguments=data_arguments if callable(data) else with_none_named(data_arguments),
                split=self.split,
                samples=self.samples,
                batch_size=self.batch_size,
                seed=self.seed,
                data_dir=self.data_dir,
            ),
            model=resolve_model(self.model, dict(map(parse_argument, self.model_arg))),
            selection=Selection(self.key, self.allow_missing, self.allow_extra, self.rename),
            adapter=self.adapter,
            loss=resolve_loss(self.loss),
            objective=import_callable(self.objective, "--objective") if self.objective else None,
            batch_norm=self.batch_norm,
            parameters=self.parameters,
            dtype=getattr(torch, self.dtype),
            device=resolve_device(self.device),
        )

    def subjects(self, path: Path) -> Iterator[tuple[str, Subject]]:
        """What is analyzed of a checkpoint: of an adapter both, alone and merged, unless one of them is wanted.

        Yields:
            What is added to the checkpoint's label, and the subject.
        """
        from trainers.hugging_face import adapter_folder

        if self.adapter is not None or adapter_folder(path) is None:
            yield "" if self.adapter is None else f" ({_ADAPTER[self.adapter]})", self.subject(path)
            return
        for kind, words in _ADAPTER.items():
            yield f" ({words})", dataclasses.replace(self, adapter=kind).subject(path)

    def other_split(self, path: Path, problem: Problem) -> dict[str, Problem]:
        """The split that these options do not name -> the same loss over its examples."""
        split = "test" if self.split == "train" else "train"
        return {split: self.over(path, problem, split=split)}

    def over(self, path: Path, problem: Problem, **changes: Any) -> Problem:
        """The same loss over the examples that these options name with `changes`."""
        return problem.with_batches(list(dataclasses.replace(self, **changes).subject(path).problem.batches))


def problem(**changes: dict[str, Any]) -> Callable[[F], F]:
    """The options of `ProblemOptions`, which the command gets as `problem`; `changes` as in `group`."""
    return group(ProblemOptions, "problem", changes)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go and what is said of them."""

    out: str | None = option(None, type=click.Path())
    as_json: bool = option("Print the summary as JSON on stdout.", "--json", default=False)

    def directory(self, default: Path) -> Path:
        """Where results are written.

        Raises:
            InputError: nothing can be written there.
        """
        directory = Path(self.out) if self.out else default
        check_writable(directory)
        return directory

    def show(self, summary: Mapping[str, Any], *lines: str) -> None:
        """Print the summary as JSON where that was asked for, else the lines."""
        if self.as_json:
            click.echo(json.dumps(summary, indent=1, allow_nan=False))
        else:
            click.echo("\n".join(lines))


def output(help: str) -> Callable[[F], F]:
    """--quiet, --venue and the options of `OutputOptions`, which the command gets as `output`; `help`: of --out."""
    grouped = group(OutputOptions, "output", {"out": {"help": help}})
    return lambda command: grouped(venue(quiet(command)))


def show_plan(problem: Problem, label: str, eigenpairs: int | None) -> None:
    """Say on standard error what curvature will take of the memory, unless --quiet; None where none is computed.

    Raises:
        InputError: it does not fit; the nearest setting that does is named.
    """
    if eigenpairs is not None:
        plan = problem.plan(eigenpairs=eigenpairs)
        plan.require()
        if is_shown():
            click.echo(f"{label}: {plan}", err=True)


# -- the machine -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def processes(name: str | None) -> Iterator[tuple[torch.device, int]]:
    """Join the processes that torchrun started, if it did; yields this one's device and rank (0 where it is alone).

    On GPUs every process takes its own.
    """
    from landscape.processes import launched, process_group

    device = resolve_device(name)
    if device.type == "cuda" and launched():
        device = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    with process_group(device) as rank:
        yield device, rank
