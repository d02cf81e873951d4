"""`landscape invariance [CKPT]`: which measures see the network's function, and which its parametrization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options
from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.invariance.invariance import Invariance
    from landscape.problem.problem import Problem


@click.command("invariance")
@click.argument("checkpoint", required=False, type=click.Path(), metavar="[CKPT]")
@click.option("--transforms", type=int, default=50, show_default=True, help="Rescaled networks.")
@click.option("--low", type=float, default=0.5, show_default=True, help="Smallest factor tau.")
@click.option("--high", type=float, default=1.5, show_default=True, help="Largest factor tau.")
@click.option("--rho", type=float, default=None, help="Radius of the plain 2-ball; default 0.05, without CKPT 0.5.")
@click.option("--rho-inf", type=float, default=0.005, show_default=True, help="Radius of the plain inf-ball.")
@click.option("--adaptive-rho", type=float, default=0.5, show_default=True, help="Radius of the adaptive 2-balls.")
@click.option("--adaptive-rho-inf", type=float, default=0.05, show_default=True, help="... of the adaptive inf-balls.")
@click.option("-p", "--p", "orders", type=float, multiple=True, help="2 or inf; repeatable; default both.")
@click.option("--steps", type=int, default=20, show_default=True, help="Of the worst-case ascents; 0: leave them out.")
@click.option("--eigenvalues/--no-eigenvalues", default=True, show_default=True, help="lambda_max of H and T H T.")
@click.option(
    "--hint",
    "hints",
    multiple=True,
    metavar="MODULE=KIND",
    help="For a model that cannot be traced: opaque (ends paths) or homogeneous; repeatable.",
)
@options.problem
@options.out("Default: invariance/, beside the checkpoint where there is one.")
@options.resume
@options.json
@options.quiet
def command(checkpoint: str | None, **given: Any) -> None:
    """Measure a network at random rescalings that leave its function as it is.

    Without a checkpoint: a randomly initialized network of five linear layers of width 10 and three ReLUs on points in
    the plane. With one: your network. Writes invariance.h5, invariance.json and figures/ to one directory.
    """
    from figures.drawing import invariance as figures
    from landscape.files import write_json
    from landscape.invariance.invariance import rescaling_invariance
    from landscape.invariance.measures import Radii
    from landscape.results import hdf5
    from landscape.results.journal import Journal
    from landscape.results.result import plain

    names = ("rho", "rho_inf", "adaptive_rho", "adaptive_rho_inf", "steps", "eigenvalues")
    # The ASAM report's toy experiments take 0.5 for both methods.
    given["rho"] = given["rho"] if given["rho"] is not None else 0.05 if checkpoint else 0.5
    settings = Radii(**{k: given[k] for k in names}, **({"orders": given["orders"]} if given["orders"] else {}))
    out = Path(given["out"]) if given["out"] else (Path(checkpoint).parent if checkpoint else Path()) / "invariance"
    hints = _hints(given["hints"])
    problem, title, facts = _problem(checkpoint, given)
    options.check_writable(out)
    arguments = {k: given[k] for k in ("transforms", "low", "high", "seed")}
    journal = Journal(out / "invariance.partial.jsonl", resume=given["resume"])
    result = rescaling_invariance(problem, **arguments, settings=settings, hints=hints, journal=journal)
    hdf5.save(out / "invariance.h5", {"invariance": result}, facts)
    content = {**result.summary(), **facts, "provenance": plain(result.provenance)}
    write_json(out / "invariance.json", content)
    journal.finish()
    figures.draw(result, out / "figures", title=title)
    if given["as_json"]:
        click.echo(json.dumps(content, indent=1, allow_nan=False))
        return
    click.echo(text(result, title))
    click.echo(f"written to {out}")


def text(result: Invariance, title: str) -> str:
    """The result as the terminal shows it."""
    groups = result.groups
    if not result.names:
        return "\n".join([f"{title}: no rescaling symmetry was found, so there is nothing to test", *groups["notes"]])
    a = result.arguments
    lines = [
        f"{title}: {groups['dimension']} free factors, {a['transforms']} transforms, tau in [{a['low']:g}, "
        f"{a['high']:g}), seed {a['seed']}; outputs change by {result.output_changes.max():.1e} (relative)",
        *(f"note: {note}" for note in groups["notes"]),
        *(f"note: {b['name']}: the outputs change by {b['residual']:.1e}; not used" for b in groups["rejected"]),
        "",
        f"{'measure':48} {'rho':>6} {'spread':>9}  verdict",
    ]
    for name, rho in zip(result.names, result.rho, strict=True):
        radius = "" if rho != rho else f"{rho:g}"
        lines.append(f"{name:48} {radius:>6} {result.spread(name):9.1e}  {result.verdict(name)}")
    return "\n".join([*lines, "", *_biases(result), "", *_not_claimed(result)])


def _biases(result: Invariance) -> list[str]:
    """What the biases do: the function, and the spread of adaptive sharpness under each treatment."""
    treatments = list(result.biases[0]["relative_spread"])
    header = f"{'transform of':24} {'outputs':>9}" + "".join(f" {t:>14}" for t in treatments)
    rows = ["element-wise adaptive sharpness: relative spread by treatment of the biases", header]
    for row in result.biases:
        cells = "".join(f" {row['relative_spread'][t]:14.1e}" for t in treatments)
        rows.append(f"{row['transform']:24} {row['function_residual']:9.1e}{cells}")
    return rows


def _not_claimed(result: Invariance) -> list[str]:
    lines = [
        "not claimed: element-wise measures are invariant under positive diagonal rescaling only,",
        "             filter-wise and layer-wise ones are not invariant under it (see above)",
    ]
    for r in result.rotations:
        lines.append(
            f"rotating what passes from layer {r['layers'][0]} to layer {r['layers'][1]} (no activation between them), "
            f"{r['draws']} times: outputs {r['function_residual']:.1e}"
        )
        lines += [f"  {name:46} {'':6} {value:9.1e}" for name, value in r["relative_spread"].items()]
    return lines


def _hints(texts: tuple[str, ...]) -> dict[str, str]:
    for one in texts:
        if one.count("=") != 1:
            raise InputError(f"--hint {one!r}: MODULE=KIND is needed, for example --hint layers.3=opaque")
    return dict(one.split("=") for one in texts)


def _problem(checkpoint: str | None, given: dict[str, Any]) -> tuple[Problem, str, dict[str, Any]]:
    """The loss, the network's name, and what to write beside the result."""
    if checkpoint is None:
        return _table_2(given)
    # The symmetry holds for any sample: a few examples show it.
    given["samples"] = 256 if given["samples"] is None else given["samples"]
    found = options.build_subject(Path(checkpoint), given)
    return found.problem, str(checkpoint), {"checkpoint": str(checkpoint), "sha256": found.sha256}


def _table_2(given: dict[str, Any]) -> tuple[Problem, str, dict[str, Any]]:
    """The toy network of the ASAM report (Table II), untrained, on points in the plane."""
    import torch

    from landscape.problem.problem import Problem
    from trainers.data.datasets import load_data
    from trainers.models import build_model

    for name in ("model", "data", "loss"):
        if given[name]:
            raise InputError(f"--{name} without a checkpoint: give the checkpoint that holds the weights")
    data = load_data("toy2d", seed=given["seed"])
    device = options.resolve_device(given["device"])
    model = build_model("table2-mlp", classes=2, input_shape=(2,), seed=given["seed"])
    count = data.size(given["split"])
    indices = torch.arange(min(given["samples"] or 500, count))
    problem = Problem(
        model.to(device, getattr(torch, given["dtype"])),
        torch.nn.functional.cross_entropy,
        data.to(device).batches(given["split"], given["batch_size"] or count, indices),
        parameters=list(given["parameters"]) or None,
        batch_norm=given["batch_norm"],
    )
    return problem, "table2-mlp, untrained", {"checkpoint": None, "model": "table2-mlp", "data": "toy2d"}


for parameter in command.params:
    if parameter.name == "dtype":  # a test of invariance to rounding needs digits
        parameter.default = "float64"
    if parameter.name == "samples" and isinstance(parameter, click.Option):
        parameter.help = "Examples of the fixed sample; default 256 (500 without CKPT): the symmetry holds for any."
