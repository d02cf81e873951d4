"""A training run over its plane as a moving picture: where each checkpoint is, and how far it lies off the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.drawing import style
from figures.drawing.contours import color_bar, draw_contours
from figures.drawing.surface import notes
from figures.page.grids import grid, shared_scale
from landscape.errors import InputError
from landscape.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 0.4
"""Of a frame; the last one stays four times as long."""
DPI = 120


def write(surface: Any, path: str | Path, names: Sequence[str] = ()) -> Path:
    """Write a GIF with one frame per checkpoint, or an MP4 where the name of the file ends so.

    Args:
        surface: a plane through a trajectory (`Surface` with `marks` and `residuals`).
        path: the file.
        names: of the checkpoints, in their order; numbers where they are not as many.
    """
    from matplotlib import pyplot as plt

    figure, show = film(surface, names)
    figure.set_dpi(DPI)
    try:
        with style.use(), atomic(path) as temporary:
            (_mp4 if Path(path).suffix == ".mp4" else _gif)(figure, show, len(surface.marks), temporary)
    finally:
        plt.close(figure)
    return Path(path)


def _mp4(figure: Figure, show: Callable[[int], None], count: int, path: Path) -> None:
    from matplotlib.animation import FFMpegWriter

    # Five frames a second: a whole number of them for every checkpoint.
    writer = FFMpegWriter(fps=5, codec="h264", extra_args=["-f", "mp4", "-pix_fmt", "yuv420p"])
    with writer.saving(figure, str(path), DPI):
        for i in [*range(count), *[count - 1] * 3]:
            show(i)
            for _ in range(round(5 * SECONDS)):
                writer.grab_frame()


def _gif(figure: Figure, show: Callable[[int], None], count: int, path: Path) -> None:
    from PIL import Image

    frames = []
    for i in range(count):
        show(i)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"))  # type: ignore[attr-defined]
    # One palette for all: what stands still keeps its colors, and so do the few pixels that move.
    width, height = frames[-1].size
    sample = Image.new("RGB", (width, height + 80), style.color(1))
    sample.paste(style.color(0), (0, height + 40, width, height + 80))
    sample.paste(frames[-1])
    palette = sample.quantize(256)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    milliseconds = [round(1000 * SECONDS)] * (len(frames) - 1) + [round(4000 * SECONDS)]
    frames[0].save(path, format="gif", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def film(surface: Any, names: Sequence[str] = ()) -> tuple[Figure, Callable[[int], None]]:
    """The drawing, and what moves it to checkpoint i: the path up to there on the left, its distances on the right.

    Raises:
        InputError: no plane, or one that no checkpoints are marked in.
    """
    from matplotlib import pyplot as plt

    if surface.marks is None or surface.loss.ndim != 2:
        raise InputError("a moving picture needs a plane through checkpoints: --directions trajectory, two dimensions")
    marks, residuals = np.asarray(surface.marks, dtype=float), np.asarray(surface.residuals, dtype=float)
    count = len(marks)
    if len(names) != count:
        names = [str(i + 1) for i in range(count)]
    drawn = replace(grid(surface), marks=None)
    scale = shared_scale([drawn])
    with style.use():
        figure, (plane, off) = plt.subplots(
            1, 2, figsize=(style.PAGE, 3.0), width_ratios=(1.3, 1), layout="constrained"
        )
        mappable = draw_contours(plane, drawn, scale, log=scale.wide_range)
        color_bar(figure, mappable, np.array([plane]), scale, log=scale.wide_range)
        plane.set(xlabel=drawn.names[0], ylabel=drawn.names[1])
        (path,) = plane.plot([], [], "-o", color="white", markersize=2.5, markeredgecolor="black", linewidth=0.8)
        (here,) = plane.plot([], [], "o", color=style.color(1), markersize=6, markeredgecolor="white")
        steps = np.arange(1, count + 1)
        off.plot(steps, residuals, color="#c4c9cf", linewidth=0.8)
        (past,) = off.plot([], [], "-o", color=style.color(0), markersize=2.5)
        (now,) = off.plot([], [], "o", color=style.color(1), markersize=6, markeredgecolor="white")
        off.set(xlabel="checkpoint", ylabel="distance from the plane (‖w‖)")
        off.set_xlim(0.5, count + 0.5)
        off.set_ylim(bottom=0)
        off.xaxis.get_major_locator().set_params(integer=True)
        _title(plane, names, 0)
        off.set_title("what the plane does not show", loc="left")
        style.footnote(figure, *notes({"": surface}))  # fixes the layout: nothing jumps from frame to frame

    def show(i: int) -> None:
        path.set_data(*marks[: i + 1].T)
        here.set_data(*marks[i : i + 1].T)
        past.set_data(steps[: i + 1], residuals[: i + 1])
        now.set_data(steps[i : i + 1], residuals[i : i + 1])
        _title(plane, names, i)

    return figure, show


def _title(panel: Any, names: Sequence[str], i: int) -> None:
    name = f": {names[i]}" if names[i] != str(i + 1) else ""
    panel.set_title(f"checkpoint {i + 1} of {len(names)}{name}", loc="left")
