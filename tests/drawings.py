"""Drawings that tests of palettes and guides share."""

import numpy as np
from PIL import Image, ImageDraw

from sar_gen.palettes import load_palette

COLOURS = {entry.name: entry.colour for entry in load_palette().classes}
WHITE = (255, 255, 255)


def drawn(ground, figures, side=128, oversampling=4):
    """An anti-aliased drawing: ``figures`` draws on a canvas whose sides are 1."""
    size = side * oversampling
    image = Image.new("RGB", (size, size), ground)
    figures(ImageDraw.Draw(image), size)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def river(draw, size, colour=COLOURS["water"], width=0.12):
    x = np.linspace(-0.1, 1.1, 50)
    points = [(a * size, (0.5 + 0.2 * np.sin(6 * a)) * size) for a in x]
    draw.line(points, fill=colour, width=int(width * size), joint="curve")
