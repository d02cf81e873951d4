"""The section of docs/trust.md that `benchmarks/public.py` writes: tables of its records, aims, what was not run."""

from __future__ import annotations

import functools
import json
import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import table

BEGIN, END = "<!-- public networks: written by benchmarks/public.py -->", "<!-- end of public networks -->"
OURS = {"eigenvalues": "ours, defaults", "trace": "ours, defaults", "sam": "ours", "surface": "ours"}
UNIT = ("product", "by hand")
ARPACK, PYHESSIAN, BARE = "curvlinops + eigsh, tol 1e-2", "PyHessian, defaults", "bare passes"
Record = dict[str, Any]


def records(folder: Path, names: Sequence[str]) -> list[Record]:
    """The finished records, by number of images, then in the order of the names."""
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    whole = [r for r in done if all(first(r, quantity) for quantity in OURS)]
    return sorted(whole, key=lambda r: (r["images"], names.index(r["network"])))


def first(record: Record, quantity: str) -> Record | None:
    """Our run of the first round."""
    runs = record["runs"].get(quantity, {}).get(OURS[quantity])
    return runs[0] if runs else None


def ratio(record: Record, quantity: str, base: tuple[str, str]) -> float:
    """Median over the common rounds of our CPU seconds / those of `base` (quantity, arm); nan where there is none."""
    ours, other = (
        {r["round"]: r["cpu"] for r in record["runs"].get(q, {}).get(arm, [])}
        for q, arm in ((quantity, OURS[quantity]), base)
    )
    common = [ours[r] / other[r] for r in ours if r in other]
    return statistics.median(common) if common else math.nan


def error(record: Record, quantity: str, arm: str) -> float:
    """Worst relative error of the arm over its values and rounds."""
    truth = np.array(record["truth"][quantity])
    return max(float(np.max(np.abs(np.array(r["values"]) / truth - 1))) for r in record["runs"][quantity][arm])


def section(folder: Path, names: Sequence[str]) -> str:
    """The section, without its markers."""
    done = records(folder, names)
    if not done:
        return "No network has been measured."
    parts = ["## Public networks", _intro(done), *_values(done), *_peers(done), *_bar(done), _limits(done, names)]
    return "\n\n".join(_wrapped(part) for part in parts)


def write(page: Path, text: str) -> None:
    """Put the section between its markers, or on top of the page where there are none."""
    old = page.read_text(encoding="utf-8") if page.exists() else "# What the numbers rest on\n"
    marked = f"{BEGIN}\n\n{text}\n\n{END}"
    if BEGIN in old and END in old:
        before, after = old.partition(BEGIN)[0], old.partition(END)[2]
        page.write_text(before + marked + after, encoding="utf-8")
        return
    title, _, rest = old.partition("\n")
    page.write_text(f"{title}\n\n{marked}\n{rest}", encoding="utf-8")


def _wrapped(text: str) -> str:
    """The text at the width of the house; tables stay."""
    lines = text.split("\n")
    fill = functools.partial(textwrap.fill, width=120, break_on_hyphens=False)
    return "\n".join(
        s if s.startswith("|") else fill(s, subsequent_indent="  " if s.startswith("* ") else "") for s in lines
    )


def _label(record: Record) -> str:
    return f"{record['network']}, {record['images']:,}"


def _intro(done: list[Record]) -> str:
    machines = sorted({r["machine"] for r in done})
    loads = [run["load"] for r in done for arms in r["runs"].values() for runs in arms.values() for run in runs]
    return (
        "Five networks that nobody here trained: ResNet-20/32/44/56 of github akamaster/pytorch_resnet_cifar10 and the "
        "ResNet-20 of github amirgholami/PyHessian, on 128 and 1,024 CIFAR-10 training images, BatchNorm in evaluation "
        "mode, mean cross-entropy. Everyone gets the same float32 network and the same batches of 128, only PyHessian "
        "one batch, for which it keeps its graph. The references are in float64, by hand: "
        "ARPACK on a hand-written double backward (for the deeper networks and 1,024 images, where it would take an "
        "hour, that double backward on the span of our vectors: it shows errors, and ARPACK in float32 below whether "
        "one was missed), the trace image by image from ten backward passes, SAM's step and the corners of the "
        "surface by moving the weights by hand.\n\n"
        f"`python benchmarks/public.py`: {'; '.join(machines)}. Seconds are medians of CPU time "
        f"(of all threads: the machine was shared, its load average {min(loads):.1f} to {max(loads):.1f}), ratios "
        "medians within rounds. Our times include the making of the Problem with its checks."
    )


def _values(done: list[Record]) -> Iterator[str]:
    rows, errors = [], []
    for record in done:
        ours = {q: first(record, q) for q in OURS}
        pairs = zip(ours["eigenvalues"]["values"], ours["eigenvalues"]["bounds"], strict=True)
        rows.append(
            [
                _label(record),
                f"{record['parameters']:,}",
                f"{record['truth']['loss']:.4f}",
                ", ".join(f"{v:.6g} ± {b:.0e}" for v, b in pairs),
                f"{ours['trace']['values'][0]:.6g} ({ours['trace']['says']})",
                f"{ours['sam']['values'][0]:.5g}",
            ]
        )
        off = np.abs(np.array(ours["eigenvalues"]["values"]) - record["truth"]["eigenvalues"])
        held = int((off <= np.array(ours["eigenvalues"]["bounds"])).sum())
        errors.append(
            [_label(record), f"{held} of {len(off)}", *(f"{error(record, q, a):.1e}" for q, a in OURS.items())]
        )
    yield "### Values"
    yield table(
        rows, ["network, images", "parameters", "L", "five largest eigenvalues", "trace", "SAM sharpness (0.05)"]
    )
    yield (
        "Relative distance from the references, the worst over eigenvalues and rounds, and bounds that hold. A bound "
        "is one for the matrix as float32 computes it; the reference in float64 may lie outside, and where fewer than "
        "five hold it does."
    )
    yield table(errors, ["network, images", "bounds held", "eigenvalues", "trace", "SAM sharpness", "surface, corners"])


def _peers(done: list[Record]) -> Iterator[str]:
    for quantity, title in (
        ("eigenvalues", "Five largest eigenvalues, beside others"),
        ("trace", "Trace, beside others"),
    ):
        rows = []
        for record in done:
            for arm, runs in record["runs"][quantity].items():
                products = sorted({r["products"] for r in runs})
                rows.append(
                    [
                        _label(record),
                        arm,
                        "-".join(str(n) for n in sorted({products[0], products[-1]})),
                        f"{error(record, quantity, arm):.1e}",
                        runs[0]["says"],
                        f"{statistics.median(r['cpu'] for r in runs):.1f}",
                        "" if arm == OURS[quantity] else f"{ratio(record, quantity, (quantity, arm)):.2f}",
                    ]
                )
        yield f"### {title}"
        yield table(
            rows, ["network, images", "who", "products", "worst error", "says of its error", "CPU seconds", "ours / it"]
        )
    yield "### Against bare passes"
    yield (
        "A double backward that rebuilds its graph is the unit of the first two columns. SAM sharpness and the "
        "surface are compared with the passes that they cannot do without, by hand in batches of 128."
    )
    rows = [
        [
            _label(r),
            *(f"{ratio(r, q, UNIT):.2f}" for q in ("eigenvalues", "trace")),
            *(f"{ratio(r, q, (q, BARE)):.2f}" for q in ("sam", "surface")),
        ]
        for r in done
    ]
    yield table(
        rows, ["network, images", "eigenvalues, in products", "trace, in products", "SAM / bare", "surface / bare"]
    )


def _bar(done: list[Record]) -> Iterator[str]:
    record = next((r for r in done if (r["network"], r["images"]) == ("ResNet-20", 128)), None)
    if record is None:
        return
    products = max(r["products"] for r in record["runs"]["eigenvalues"][OURS["eigenvalues"]])
    aims = [
        ("products of the five eigenvalues", 12, products),
        ("time of the eigenvalues / ARPACK's", 0.50, ratio(record, "eigenvalues", ("eigenvalues", ARPACK))),
        ("time of the eigenvalues / PyHessian's", 0.17, ratio(record, "eigenvalues", ("eigenvalues", PYHESSIAN))),
        ("time of the trace, in products", 3, ratio(record, "trace", UNIT)),
        ("a point of the surface / a bare forward pass", 0.99, ratio(record, "surface", ("surface", BARE))),
    ]
    yield "### Against the aims"
    yield "ResNet-20 on 128 images, aims from one measurement by hand before this benchmark was written:"
    rows = [
        [what, aim, "not run" if math.isnan(value) else f"{value:.2f}", "yes" if value <= aim else "no"]
        for what, aim, value in aims
    ]
    yield table(rows, ["what", "at most", "measured", "reached"])


def _limits(done: list[Record], names: Sequence[str]) -> str:
    there = {(r["network"], r["images"]) for r in done}
    missing = [f"{n}, {i:,}" for i in (128, 1024) for n in names if (n, i) not in there]
    arms = {arm for r in done for q in ("eigenvalues", "trace") for arm in r["runs"][q]}
    lines = ["### Not run", *([f"* Networks and images: {'; '.join(missing)}."] if missing else [])]
    for record in done:
        absent = [a for a in sorted(arms) if not any(a in record["runs"][q] for q in ("eigenvalues", "trace"))]
        if absent:
            lines.append(f"* {_label(record)}: {'; '.join(absent)}.")
    lines.append("* SAM sharpness and surfaces by others: these three have none.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])
