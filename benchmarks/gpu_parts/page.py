"""The record of `benchmarks/gpu.py` as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import table

from gpu_parts.items import ITEMS, Item
from landscape.files import atomic

STUDIES = (
    "ResNet-18, batch 512, bfloat16, channels last, data and augmentation on the device: 30 epochs of all of "
    "Fashion-MNIST, 60 of the CIFAR-10 images at hand. Means over the seeds that are done, from three on with 95% "
    "intervals; verdicts are in studies.tar.gz."
)
BEGIN, END = "<!-- gpu: written by benchmarks/gpu.py -->", "<!-- end of gpu -->"


def table_of(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; what was not a number is a dash."""
    return table([["-" if cell is None else cell for cell in row] for row in rows], list(header))


def text(content: Mapping[str, Any]) -> str:
    """All tables; what was not measured is said to be so."""
    items, left = content.get("items", {}), content.get("left", {})
    machines = dict.fromkeys(f"{e['machine']}" for e in items.values() if "machine" in e)
    where = "\n".join(f"Measured on: {m}" for m in machines) or "Nothing has been measured."
    parts = [where, _tests(items.get("a/tests"), left.get("a/tests"))]
    for name, item in ITEMS.items():
        parts.append(f"{head(item)}\n{_measured(items.get(f'b/{name}'), left.get(f'b/{name}'))}")
    return "\n\n".join([*parts, _studies(items, left)]) + "\n"


def _studies(items: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    entry, speed = items.get("c/studies"), items.get("c/speed", {})
    parts = ["### Studies of the preset gpu", textwrap.fill(STUDIES, 120)]
    if "images_per_second" in speed:
        parts.append(f"SGD on this machine: {speed['images_per_second']:,.0f} images/s.")
    parts.append(_measured(entry, left.get("c/studies")))
    made = items.get("c/figures", {})
    if "drawn" in made:
        drawn = ", ".join(f"{name} (seeds: {seeds})" for name, seeds in made["drawn"].items()) or "none"
        parts.append(textwrap.fill(f"Figures that are complete so far: {drawn}.", 120))
        parts += [f"* {name} was not drawn: {why}" for name, why in made["failed"].items()]
    return "\n\n".join(parts)


def head(item: Item) -> str:
    """What stands above a table."""
    return f"### {item.title}\n\n{textwrap.fill(item.goal, 120)}\n"


def _tests(entry: Mapping[str, Any] | None, reason: str | None) -> str:
    if entry is None or "summary" not in entry:
        said = _missing(entry, reason)
    else:
        said = "\n".join([f"{entry['summary'].strip('= ')}.", *(f"* {line}" for line in entry["failed"])])
    return f"### Tests that need a GPU\n\n{said}"


def _measured(entry: Mapping[str, Any] | None, reason: str | None) -> str:
    if entry is None or "rows" not in entry:
        return _missing(entry, reason)
    size = "" if entry["sizes"] == "full" else f"Sizes: {entry['sizes']}; these numbers mean nothing.\n\n"
    return size + table_of(entry["header"], entry["rows"])


def _missing(entry: Mapping[str, Any] | None, reason: str | None) -> str:
    if entry is not None and "error" in entry:
        return f"Not measured: {entry['error']}"
    return f"Not measured{f': {reason}' if reason else ''}."


def put(path: Path, made: str) -> None:
    """Replace what lies between the marks in a file; without them it comes to its end."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    start, mark, rest = before.partition(BEGIN)
    tail = rest.partition(END)[2] if mark else ""
    if not mark:
        start = f"{before.rstrip()}\n\n" if before else ""
    with atomic(path) as temporary:
        temporary.write_text(f"{start}{BEGIN}\n{made}{END}{tail or chr(10)}", encoding="utf-8")
