"""The gallery: a thumbnail, the command and the verdicts of every figure that was made."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from figures import FIGURES
from landscape.files import atomic

WIDTH = 900
"""Pixels of a thumbnail."""


def write(out: str | Path, docs: str | Path) -> Path:
    """Write `docs`/gallery.md and `docs`/gallery/NAME.png from the figures in `out`.

    A figure that is not in `out` keeps the thumbnail that is there; one without any is named without a picture.
    """
    from PIL import Image

    out, docs = Path(out), Path(docs)
    parts = [_HEAD]
    for name, entry in FIGURES.entries.items():
        thumbnail = docs / "gallery" / f"{name}.png"
        if (out / f"{name}.png").is_file():
            with Image.open(out / f"{name}.png") as picture:
                small = picture.convert("RGB")
                small.thumbnail((WIDTH, 4 * WIDTH))
                # Lines keep their colors: the largest areas alone would take the palette otherwise.
                coverage, none = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
                small = small.quantize(256, method=coverage, dither=none)
                with atomic(thumbnail) as temporary:
                    small.save(temporary, format="png", optimize=True)
        parts.append(f"## {name}\n\n{entry.summary}. Source: {entry.facts['source']}.\n")
        parts.append(f"```\nlandscape figures {name}\n```\n")
        if thumbnail.is_file():
            parts.append(f"![{name}](gallery/{name}.png)\n")
        if (out / f"{name}-verdict.json").is_file():
            parts.append(_verdicts(out / f"{name}-verdict.json"))
    with atomic(docs / "gallery.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return docs / "gallery.md"


_HEAD = """# Gallery

The figures of `landscape figures`, preset quick (small networks, minutes on a CPU). Lines and dots are means over
seeds, bands and bars 95% intervals. Each figure comes as PDF, SVG and PNG with its numbers (CSV, HDF5) and a verdict on
each claim of its paper; many claims stay undecided on problems this small, and what does not reproduce is said. The
time is that of the figure's own runs, those that it shares with other figures included, on the machine that drew it.
"""


def _verdicts(path: Path) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    counts, facts = Counter(c["verdict"] for c in content["claims"]), content["facts"]
    seeds = next((f", {facts[k]} {k}" for k in ("seeds", "networks") if facts.get(k)), "")
    said = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items(), reverse=True))
    lines = [f"Runs: {_duration(facts['cost'])}. Claims (preset {facts['preset']}{seeds}): {said}.\n"]
    lines += [f"* {c['text']}: **{c['verdict']}**" for c in content["claims"]]
    return "\n".join(lines) + "\n"


def _duration(cost: dict[str, float]) -> str:
    """The time that a figure's runs take on two cores, those that measure time one after the other.

    Of the others that of the processor: by the clock other jobs of the machine count too.
    """
    shared = max(cost["processor_seconds"] - cost["alone_seconds"], 0.0)
    alone = f", {cost['alone_seconds']:.0f} s of them timings that run alone" if cost["alone_seconds"] >= 0.5 else ""
    return f"about {shared / 2 + cost['alone_seconds']:.0f} s on two cores{alone}"


if __name__ == "__main__":
    print(write(sys.argv[1], sys.argv[2]))
