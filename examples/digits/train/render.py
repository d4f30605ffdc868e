"""Draws a few held-out digits as ordinary picture files in ../images, each named by its label.

They differ on purpose in what a decoder must cope with: grey, colour, a palette, transparency,
JPEG in grey and in colour; light on dark and dark on light; tight, with margins, off centre, and
not square. Run it after train.py, with the same requirements. The files are committed: another
zlib or libjpeg would write other bytes for the same pictures.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from train import split

IMAGES = Path(__file__).resolve().parent.parent / "images"


def main():
    IMAGES.mkdir(exist_ok=True)
    _, images, _, labels, _, _ = split()

    def ink(label, nth, side=160):
        return drawn(images[np.flatnonzero(labels == label)[nth]], side)

    # Light ink on black.
    grey(ink(7, 10)).save(IMAGES / "seven.png", optimize=True)
    grey(ink(0, 5)).save(IMAGES / "zero.png", optimize=True)
    grey(ink(2, 11)).convert("RGB").save(IMAGES / "two.png", optimize=True)
    corner = placed(ink(4, 7, 112), 200, 150, 70, 14)
    grey(corner).save(IMAGES / "four-off-centre.png", optimize=True)
    # A palette of 16 colours: chalk on a green board.
    chalk = coloured(ink(6, 6), (240, 240, 215), (16, 48, 34))
    chalk.quantize(16, dither=Image.Dither.NONE).save(IMAGES / "six-palette.png", optimize=True)
    # Dark ink on white paper.
    paper = 255 - 0.92 * placed(ink(3, 5, 128), 240, 240, 60, 48)
    grey(paper).convert("RGB").save(IMAGES / "three-on-paper.jpg", quality=90)
    pen = coloured(placed(ink(5, 9, 144), 320, 220, 110, 30), (22, 40, 130), (244, 239, 224))
    pen.save(IMAGES / "five-blue-pen.jpg", quality=92, subsampling=0)
    grey(255 - placed(ink(8, 1, 120), 180, 260, 24, 90)).save(IMAGES / "eight-grey.jpg", quality=85)
    # Black ink on nothing: only alpha tells ink from paper.
    alpha = grey(placed(ink(9, 3, 136), 160, 160, 12, 12))
    black = Image.new("L", alpha.size, 0)
    Image.merge("RGBA", (black, black, black, alpha)).save(
        IMAGES / "nine-transparent.png", optimize=True
    )
    Image.merge("LA", (grey(255 - ink(1, 8)), grey(np.full((160, 160), 255.0)))).save(
        IMAGES / "one-grey-alpha.png", optimize=True
    )
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


def drawn(image, side):
    """An 8x8 image, drawn smoothly with a firm edge; 0..255, ink is light."""
    margin = np.pad(np.rint(image * 255), 1).astype(np.uint8)
    large = Image.fromarray(margin).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(large, np.float64) / 255 - 0.4) * 3 + 0.5, 0, 1) * 255


def placed(ink, width, height, left, top):
    """Puts a drawing on a larger sheet."""
    sheet = np.zeros((height, width))
    sheet[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return sheet


def grey(values):
    return Image.fromarray(np.rint(values).astype(np.uint8))


def coloured(ink, pen, paper):
    """Blends two colours by the amount of ink."""
    amount = ink[:, :, None] / 255
    return Image.fromarray(np.rint(amount * pen + (1 - amount) * np.array(paper)).astype(np.uint8))


if __name__ == "__main__":
    main()
