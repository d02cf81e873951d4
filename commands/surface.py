"""`landscape surface CKPT...`: the loss on a line or a plane through the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from commands import options
from landscape.errors import InputError

THROUGH = ("trajectory", "checkpoints")
"""Kinds of directions that make one surface of all checkpoints."""


@click.command("surface")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(), metavar="CKPT...")
@click.option(
    "--directions",
    default="gaussian",
    show_default=True,
    metavar="NAME",
    help="gaussian, filter, layer, hessian, hessian-ends, gradient, optimizer; or through all CKPT: trajectory (the "
    "last one is the center), checkpoints (the first one is).",
)
@click.option("--grid", default="41", show_default=True, metavar="N[xM]", help="Points an axis; odd.")
@click.option("--radius", type=float, default=None, help="Half-width; default 0.07 of ||w||, or 1 filter norm.")
@click.option("--range", "ranges", multiple=True, metavar="LOW,HIGH", help="Instead of the radius, once an axis.")
@click.option("--dimensions", type=click.IntRange(1, 2), default=2, show_default=True, help="1: a profile.")
@click.option("--spacing", type=click.Choice(["linear", "log"]), default="linear", show_default=True)
@click.option("--no-center", is_flag=True, help="Allow grids without the trained weights (even numbers).")
@click.option("--biases", is_flag=True, help="Normalized directions move biases and norm parameters too.")
@click.option("--draws", type=int, default=1, show_default=True, help="Directions: more than 1 gives a 1-D band.")
@click.option("--subsets", type=int, default=1, show_default=True, help="Parts of the data: a 1-D band.")
@click.option("--both-splits", is_flag=True, help="Evaluate the other split at the same points.")
@click.option("--gradient-norm", is_flag=True, help="||grad L|| at every point.")
@click.option("--curvature", is_flag=True, help="lambda_min and lambda_max at every point.")
@click.option("--absolute", is_flag=True, help="Several CKPT: move all by the first one's directions.")
@click.option("--gif", is_flag=True, help="With --directions trajectory: figures/trajectory.gif, a frame a checkpoint.")
@click.option("--precision", type=click.Choice(["native", "tf32", "bfloat16"]), default="native", show_default=True)
@options.problem
@options.out("Default: surface/ beside the checkpoint, surfaces/ for several.")
@options.resume
@options.json
@options.quiet
def command(checkpoints: tuple[str, ...], **given: Any) -> None:
    """Evaluate the loss on a grid around checkpoints and draw it, with checks of the picture.

    Writes surface.h5, surface.json and figures/ to one directory. Finished points are safe on disk: --resume goes on
    with what is there. Under torchrun the points are shared among its processes.
    """
    from figures.drawing import surface as drawing
    from landscape.files import write_json
    from landscape.results import hdf5

    paths = [Path(c) for c in checkpoints]
    single = len(paths) == 1 or given["directions"] in THROUGH
    out = Path(given["out"]) if given["out"] else paths[0].parent / "surface" if single else Path("surfaces")
    arguments = _arguments(given)
    band = given["draws"] != 1 or given["subsets"] != 1
    if band and (arguments["dimensions"] == 2 or not single):
        raise InputError("--draws and --subsets make a band of one checkpoint's profile: give --dimensions 1, one CKPT")
    if given["gif"] and (given["directions"] != "trajectory" or arguments["dimensions"] == 1):
        raise InputError("--gif shows a training run over its plane: give --directions trajectory and two dimensions")
    with options.processes(given["device"]) as (place, rank):
        given["device"] = str(place)
        subjects = [options.build_subject(path, given) for path in paths]
        options.check_writable(out)
        file = out / "surface.h5"
        if band:
            found: dict[str, Any] = {"profiles": _profiles(subjects[0].problem, arguments, given)}
        else:
            arguments |= {"file": file, "resume": given["resume"]}
            found = _surfaces(paths, subjects, arguments, given, single)
    if rank:
        return
    if band:
        hdf5.save(file, found)
    hashes = {str(s.path): s.sha256 for s in subjects}
    content = {"checkpoints": hashes, "surfaces": {k: r.summary() for k, r in found.items()}}
    write_json(out / "surface.json", content)
    drawing.write(found, out / "figures")
    if given["gif"]:
        from figures.drawing import animation
        from figures.page.analysis import labels

        animation.write(found["surface"], out / "figures" / "trajectory.gif", labels(paths))
    if given["as_json"]:
        click.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    for name, result in found.items():
        click.echo(drawing.described(name, result))
    click.echo(f"written to {out}")


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    names = ("directions", "radius", "seed", "dimensions", "spacing", "biases")
    found = {k: given[k] for k in names}
    found |= {"grid": _grid(given["grid"]), "center": not given["no_center"]}
    found |= {"gradient_norm": given["gradient_norm"], "curvature": given["curvature"]}
    found |= {"precision": given["precision"], "ranges": [_range(r) for r in given["ranges"]] or None}
    return found


def _grid(text: str) -> int | tuple[int, ...]:
    try:
        sizes = tuple(int(n) for n in text.split("x"))
    except ValueError as error:
        raise InputError(f"--grid {text!r}: a number, or one an axis as in 41x21, is needed") from error
    return sizes[0] if len(sizes) == 1 else sizes


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError as error:
        raise InputError(f"--range {text!r}: LOW,HIGH is needed, for example --range=-1,1") from error
    return low, high


def _profiles(problem: Any, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
    import landscape

    if arguments["ranges"] or not arguments["center"] or arguments["gradient_norm"] or arguments["curvature"]:
        raise InputError("a band takes --radius, --grid and --spacing; no --range, --no-center or maps")
    kept = ("directions", "radius", "grid", "seed", "spacing", "biases")
    counts = {k: given[k] for k in ("draws", "subsets")}
    return landscape.profiles(problem, **{k: arguments[k] for k in kept}, **counts)


def _surfaces(
    paths: list[Path], subjects: list[Any], arguments: dict[str, Any], given: dict[str, Any], single: bool
) -> dict[str, Any]:
    import landscape
    from figures.page.analysis import labels
    from landscape.surfaces.sets import check_same_architecture

    if not single:
        problems = {n: s.problem for n, s in zip(labels(paths), subjects, strict=True)}
        return landscape.compare_surfaces(problems, absolute=given["absolute"], **arguments)
    center = -1 if arguments["directions"] == "trajectory" else 0
    problem = subjects[center].problem
    for path, one in zip(paths, subjects, strict=True):
        check_same_architecture(problem, one.problem, str(path))
    if arguments["directions"] in THROUGH:
        arguments["checkpoints"] = [s.problem.weights for s in subjects if s is not subjects[center]]
    if arguments["directions"] == "optimizer":
        arguments["optimizer"] = _optimizer(paths[0], subjects[0].model, given)
    if given["both_splits"]:
        split = "test" if given["split"] == "train" else "train"
        other = options.build_subject(paths[center], {**given, "split": split}).problem
        arguments["others"] = {split: problem.with_batches(list(other.batches))}
    return {"surface": landscape.surface(problem, **arguments)}


def _optimizer(path: Path, model: Any, given: dict[str, Any]) -> Any:
    from landscape import checkpoint
    from trainers.loop.base import in_model_order

    if given["model"]:
        raise InputError("--directions optimizer needs a checkpoint that this toolkit's training wrote")
    content = checkpoint.read(path)
    state = content.get("optimizer")
    if not state:
        raise InputError(f"{path} holds no optimizer state: train with this toolkit, or choose other directions")
    return in_model_order(state, model, content.get("settings", {}).get("decay_all", False))
