"""Reading a figure that was made."""

from figures import FIGURES
from figures.study import figure as entry
from figures.study.figure_data import FigureData


def drawn(made, name):
    """The figure's numbers from disk, and the drawing of them."""
    root, _ = made(name)
    numbers = FigureData.load(root / f"{name}.h5")
    figure = entry.picture(FIGURES[name](), numbers)
    figure.draw_without_rendering()
    return numbers, figure
