"""A contact sheet of adversarial points: clean image, perturbed image and their difference in a row."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opnorm._core import files
from opnorm.errors import AttackError
from opnorm.runs.evaluation import Evaluation

__all__ = ["check_drawable", "contact_sheet"]

FONT = ImageFont.load_default(13)

TILE, GAP, TEXT = 96, 6, 18  # pixels: least side of an image, gap between images, height of a line of text
COLUMNS = 4  # points in a row
BACKGROUND = "#ececec"  # the edges of black and of white images are seen on it


def contact_sheet(
    path: Path, x: Tensor, evaluation: Evaluation, classes: Sequence[str] = (), points: int = 24
) -> None:
    """Draw the first adversarial points: clean, perturbed, and the difference around grey, all magnified by one factor.

    Below each point: its number, the model's class of the clean and of the perturbed image, and the attack that found it.

    Args:
        path: a file ending in .png.
        x: the clean points (B, C, H, W) in [0, 1] that were evaluated, grey or RGB.
        evaluation: of these points.
        classes: the names of the classes; numbers when there are none.
        points: at most so many.

    Raises:
        AttackError: the points are no images.
        RunError: the file cannot be written.
    """
    check_drawable(x)
    e, chosen = evaluation, evaluation.result.misclassified.nonzero().squeeze(1)[:points]
    clean, moved = x[chosen].float().cpu(), e.result.points[chosen].float().cpu()
    difference = moved - clean
    gain = 0.5 / float(difference.abs().max()) if len(chosen) else 1.0
    scale = max(1, -(-TILE // max(x.shape[2:])))
    height, width = (side * scale for side in x.shape[2:])
    cell_width, cell_height = 3 * width + 6 * GAP, height + 2 * TEXT + 2 * GAP
    columns, rows = min(COLUMNS, max(len(chosen), 1)), -(-len(chosen) // COLUMNS)
    head = 2 * TEXT + 2 * GAP
    sheet = Image.new("RGB", (max(columns * cell_width, 480) + GAP, rows * cell_height + head), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    shares = f"{int(e.result.misclassified.sum())} of {int(e.result.correct.sum())} points misclassified"
    _write(draw, (2 * GAP, GAP), f"{e.attack}: {shares}", sheet.width - 4 * GAP)
    legend = f"clean, perturbed, and {gain:.3g} times the difference" if len(chosen) else "nothing to show"
    _write(draw, (2 * GAP, GAP + TEXT), legend, sheet.width - 4 * GAP, "dimgray")
    for i, point in enumerate(chosen.tolist()):
        left, top = i % COLUMNS * cell_width + 2 * GAP, i // COLUMNS * cell_height + head
        for k, image in enumerate((clean[i], moved[i], difference[i] * gain + 0.5)):
            sheet.paste(_picture(image, scale), (left + k * (width + GAP), top))
        before, after = (classes[k] if classes else k for k in (int(e.before[point]), int(e.after[point])))
        _write(draw, (left, top + height + 2), f"#{point}   {before} -> {after}", 3 * width)
        if len(e.result.stages) > 1:
            name = e.result.stages[int(e.result.stage_index[point])].name
            _write(draw, (left, top + height + TEXT), name, 3 * width, "dimgray")
    with files.atomic_write(path) as part:
        sheet.save(part, "PNG")


def check_drawable(x: Tensor) -> None:
    """AttackError for points that are no images (B, C, H, W)."""
    if x.ndim != 4:
        raise AttackError(f"points of shape {tuple(x.shape)} are no images to draw; expected (B, C, H, W)")


def _picture(image: Tensor, scale: int) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB, enlarged without smoothing; of other than 3 channels, their mean."""
    rgb = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = (rgb * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    picture = Image.fromarray(pixels.numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, color: str = "black"
) -> None:
    """Write the text, or as much of it as the width holds."""
    while len(text) > 1 and FONT.getlength(text) > width:
        text = text[:-2].rstrip() + "."
    draw.text(at, text, color, FONT)
