"""A plot of what a suite of ./dev bench measured, as an SVG that the same figures make again byte for byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@contextmanager
def plotted(file: Path, title: str, *, x: str, y: str) -> Iterator[Axes]:
    """Axes from 0 to draw on; the file is written at the end."""
    # Text stays text.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "guestd", "font.size": 8}):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield axes
        axes.set_ylim(bottom=0)
        axes.legend()
        figure.savefig(file, metadata={"Date": None})
