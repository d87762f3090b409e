"""A contact sheet of adversarial points: clean image, perturbed image and their difference, side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opnorm._core import files
from opnorm.runs.attack_evaluation import Evaluation

__all__ = ["contact_sheet"]

FONT = ImageFont.load_default(13)

TILE, GAP, TEXT = 96, 6, 18  # pixels: an image at least, between images, a line of text
COLUMNS = 4  # points side by side
PAPER = "#ececec"  # so that black and white images both end where they end


def contact_sheet(
    path: Path, x: Tensor, evaluation: Evaluation, classes: Sequence[str] = (), points: int = 24
) -> None:
    """Draw the first adversarial points: clean, perturbed, and the difference around grey, magnified alike for all.

    Under each: the model's class of the clean point → that of the perturbed one, and the attack that did it.

    Args:
        path: a file ending in .png.
        x: the clean points (B, C, H, W) in [0, 1] that were evaluated, grey or RGB.
        evaluation: of these points.
        classes: the names of the classes; numbers when there are none.
        points: at most so many.

    Raises:
        RunError: the file cannot be written.
    """
    e, chosen = evaluation, evaluation.result.misclassified.nonzero().squeeze(1)[:points]
    clean, moved = x[chosen].float().cpu(), e.result.points[chosen].float().cpu()
    difference = moved - clean
    gain = 0.5 / float(difference.abs().max()) if len(chosen) else 1.0
    scale = max(1, -(-TILE // max(x.shape[2:])))
    height, width = (side * scale for side in x.shape[2:])
    cell = (3 * width + 6 * GAP, height + 2 * TEXT + 2 * GAP)
    columns, rows = min(COLUMNS, max(len(chosen), 1)), -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (max(columns * cell[0], 480) + GAP, rows * cell[1] + 2 * TEXT + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    misclassified, correct = int(e.result.misclassified.sum()), int(e.result.correct.sum())
    _write(
        draw,
        (2 * GAP, GAP),
        f"{e.attack}: {misclassified} of {correct} points misclassified",
        sheet.width - 4 * GAP,
    )
    legend = f"clean, perturbed, and {gain:.3g} times the difference" if len(chosen) else "nothing to show"
    _write(draw, (2 * GAP, GAP + TEXT), legend, sheet.width - 4 * GAP, "dimgray")
    names = [str(name) for name in classes] or [
        str(k) for k in range(int(max(e.before.max(), e.after.max())) + 1)
    ]
    for i, point in enumerate(chosen.tolist()):
        left, top = i % COLUMNS * cell[0] + GAP, i // COLUMNS * cell[1] + 2 * TEXT + 2 * GAP
        for k, image in enumerate((clean[i], moved[i], difference[i] * gain + 0.5)):
            sheet.paste(_picture(image, scale), (left + GAP + k * (width + GAP), top))
        x0, y0 = left + GAP, top + height + 2
        before, after = (names[int(kind[point])] for kind in (e.before, e.after))
        x1 = x0 + _write(draw, (x0, y0), f"#{point}   {before}", 2 * width) + 6
        _arrow(draw, x1, y0 + 9)
        _write(draw, (x1 + 20, y0), after, 3 * width - (x1 + 20 - x0))
        if len(e.result.stages) > 1:
            _write(
                draw,
                (x0, y0 + TEXT - 2),
                e.result.stages[int(e.result.stage_index[point])].name,
                3 * width,
                "dimgray",
            )
    with files.atomic_write(path) as part:
        sheet.save(part, "PNG")


def _picture(image: Tensor, scale: int) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB, enlarged without smoothing; of other than 3 channels, their mean."""
    rgb = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = (rgb * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    picture = Image.fromarray(pixels.numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, color: str = "black"
) -> int:
    """Write the text, or as much of it as the width holds; how wide it became."""
    while len(text) > 1 and FONT.getlength(text) > width:
        text = text[:-2].rstrip() + "."
    draw.text(at, text, color, FONT)
    return round(FONT.getlength(text))


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Drawn, for the font that comes with pillow has none."""
    draw.line([(x, y), (x + 13, y)], "black")
    draw.polygon([(x + 13, y), (x + 8, y - 3), (x + 8, y + 3)], "black")
