"""Surfaces, paths and invariance tests in a few lines for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.formatting import number

if TYPE_CHECKING:
    from landscape.invariance.result import Invariance
    from landscape.surfaces.paths import LossPath
    from landscape.surfaces.persistence import Persistence
    from landscape.surfaces.profiles import Profiles
    from landscape.surfaces.result import Surface


def surface_text(name: str, result: Surface | Profiles) -> str:
    """Range of the loss, caption, checks."""
    finite = result.loss[np.isfinite(result.loss)]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nowhere finite"
    lines = [f"{name}: loss {span}, center {result.center_loss:.4g}", f"  {result.caption()}"]
    lines += _merged(result) if isinstance(getattr(result, "facts", {}).get("task_vectors"), list) else []
    lines += [f"  {'ok' if c['ok'] else '! '} {c['text']}" for c in result.checks]
    return "\n".join(lines)


def _merged(result: Any) -> list[str]:
    """Merging coefficients of the lowest point and of the checkpoints that do not span the picture."""
    finite = np.where(np.isfinite(result.loss), result.loss, np.inf)
    lowest = np.unravel_index(int(np.argmin(finite)), finite.shape)
    point = [float(axis[i]) for axis, i in zip(result.axes, lowest, strict=True)]
    spanned = len(point)
    terms = " + ".join(f"{c} (w{i} - w0)" for i, c in enumerate("ab"[:spanned], 1))

    def words(place: Any) -> str:
        coefficients = result.merging_coefficients(*place)
        return ", ".join(f"{c} = {number(v, 3)}" for c, v in zip("ab", coefficients, strict=False))

    lines = [f"  merged as w0 + {terms}: the lowest loss {number(float(finite.min()))} at {words(point)}"]
    for i, mark in enumerate(result.marks[spanned:-1], spanned + 1):
        lines.append(f"  w{i}: {words(mark)}, {number(float(result.residuals[i - 1]), 2)} ||w0|| off the picture")
    return lines


def path_text(result: LossPath) -> str:
    """The barrier, caption, alignment, warnings."""
    lines = [
        f"barrier {number(result.barrier)} at t = {number(result.barrier_at, 3)}; loss {number(float(result.loss[0]))} "
        f"at the first, {number(float(result.loss[-1]))} at the second",
        f"  {result.caption()}",
    ]
    if "alignment" in result.facts:
        a = result.facts["alignment"]
        cosines = " to ".join(number(c, 3) for c in a["cosine"])
        lines.append(f"  aligned: {a['moved']} of {a['units']} units moved, cosine of the weights {cosines}")
        if a["heads"] or a["turned"]:
            stream = f", {a['turned']} features turned" if a["turned"] else ""
            lines.append(f"  an invertible matrix through each of {a['heads']} heads of attention{stream}")
    return "\n".join([*lines, *(f"  !  {w}" for w in result.warnings)])


_SHOWN = 8
"""Minima that the terminal lists."""


def persistence_text(result: Persistence) -> str:
    """Minima, saddles and persistence, each beside what noise can make; and the largest beside random surfaces."""
    out, joined = result.stands_out, np.isfinite(result.death)
    lines = [f"minima: {len(out)}, {np.count_nonzero(out)} of them more than noise can make (lowest included)"]
    for i in np.flatnonzero(out)[:_SHOWN]:
        line = f"  loss {number(float(result.birth[i]))} at {_point(result.minima[i])}"
        if joined[i]:
            line += f"; saddle {number(float(result.death[i]))} at {_point(result.saddles[i])}, persistence "
            line += f"{number(float(result.persistence[i]), 3)}, noise up to {number(float(result.noise[i]), 2)}"
        lines.append(line)
    if not out.all():
        most = int(np.flatnonzero(~out)[0])
        lines.append(
            f"  {np.count_nonzero(~out)} within noise; the most persistent of them "
            f"{number(float(result.persistence[most]), 3)}, noise up to {number(float(result.noise[most]), 2)}"
        )
    if len(result.surrogates):
        ours = float(result.persistence[joined].max()) if joined.any() else 0.0
        as_much = (1 + np.count_nonzero(result.surrogates[:, 0] >= ours)) / (1 + len(result.surrogates))
        lines.append(
            f"  random surfaces of the same spectrum: largest persistence up to {number(float(result.smooth[0]), 3)} "
            f"(95%); {number(ours, 3)} here, p = {as_much:.2g}"
        )
    return "\n".join([*lines, f"  {result.caption()}"])


def _point(coordinates: np.ndarray) -> str:
    return f"({', '.join(number(float(c), 3) for c in coordinates)})"


def invariance_text(result: Invariance, title: str) -> str:
    """Every measure's spread and verdict, what the biases do, and what is not claimed."""
    groups = result.groups
    if not result.names:
        return "\n".join([f"{title}: no rescaling symmetry was found, so there is nothing to test", *groups["notes"]])
    a = result.arguments
    lines = [
        f"{title}: {groups['dimension']} free factors, {a['transforms']} transforms, tau in [{a['low']:g}, "
        f"{a['high']:g}), seed {a['seed']}; outputs change by {result.output_changes.max():.1e} (relative)",
        *(f"note: {note}" for note in groups["notes"]),
        *(f"note: {b['name']}: the outputs change by {b['residual']:.1e}; not used" for b in groups["rejected"]),
        *(
            f"note: {e['heads']} heads of {', '.join(e['mapped'])}: outputs change by {e['residual']:.1e}; not used"
            for e in groups.get("rejected_heads", ())
        ),
        "",
        f"{'measure':48} {'rho':>6} {'spread':>9}  verdict",
    ]
    for name, rho in zip(result.names, result.rho, strict=True):
        radius = "" if rho != rho else f"{rho:g}"
        lines.append(f"{name:48} {radius:>6} {result.spread(name):9.1e}  {result.verdict(name)}")
    return "\n".join([*lines, *_attention(result), "", *_biases(result), "", *_not_claimed(result)])


def _attention(result: Invariance) -> list[str]:
    """What random invertible maps of the heads of attention do to every measure."""
    attention = result.attention()
    if attention is None:
        return []
    heads, change = sum(e["heads"] for e in result.groups["heads"]), attention["outputs"]["max_relative_change"]
    lines = [
        "",
        f"a random invertible matrix through each of {heads} heads of attention; outputs change by {change:.1e}",
    ]
    for name, row in attention["measures"].items():
        lines.append(f"{name:48} {'':6} {row['relative_spread']:9.1e}  {row['verdict']}")
    return lines


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
