"""Pictures that are kept are small and look the same."""

import io
import re

import numpy as np
import pytest

from opnorm.report import page
from opnorm.report.shrinking import shrink_svg


def pixels(svg):
    import vl_convert
    from PIL import Image

    png = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=1)))
    return np.asarray(png.convert("RGB")).astype(int)


def test_a_chart_looks_the_same_in_a_fraction_of_the_size(report):
    for chart in [chart for chart in report.all_charts if not chart.empty][:3]:
        whole = page._drawn(chart.spec, report.highlight, "svg").decode()
        small = shrink_svg(whole)
        assert len(small) < len(whole) / 2
        assert shrink_svg(small) == small
        difference = np.abs(pixels(small) - pixels(whole)).max(axis=-1)
        assert (difference > 80).mean() < 1e-4  # edges of a tenth of a pixel


@pytest.mark.parametrize(
    ("elements", "path"),
    [
        # two ticks that overlap, and one that does not
        (
            [f'<path d="M{x},250h1.5v10h-1.5Z" fill="#e37"/>' for x in ("3.26", "1.81", "9")],
            '<path d="M1.8,250h3v10h-3ZM9,250h1.5v10h-1.5Z" fill="#e37"/>',
        ),
        (
            [f'<line transform="translate({x},7.04)" x2="0" y2="-8.51" stroke="#2ad"/>' for x in (1, 5)],
            '<path d="M1,7l0,-8.5M5,7l0,-8.5" stroke="#2ad"/>',
        ),
        (
            ['<path transform="translate(5,6)" d="M4,0A4,4,0,1,1,-4,0A4,4,0,1,1,4,0" fill="#e37"/>'],
            '<path d="M9,6a4,4,0,1,1,-8,0a4,4,0,1,1,8,0" fill="#e37"/>',
        ),
        (
            ['<path transform="translate(5,6)" d="M-3,-3h6v6h-6Z" fill="#e37"/>'] * 2,
            '<path d="M2,3h6v6h-6ZM2,3h6v6h-6Z" fill="#e37"/>',
        ),
        (['<g><line transform="translate(5,6)" x2="0" y2="0" stroke="#e37"/></g>'], ""),
        (['<path d="M0,0h6v6h-6Z" opacity="0" fill="#e37"/><text opacity="0">far</text>'], ""),
        # what has no fill, or no line, is seen all the same
        (
            ['<path d="M0,0L6,6" fill-opacity="0" stroke="#2ad"/><text stroke-opacity="0">near</text>'],
            '<path d="M0,0L6,6" fill-opacity="0" stroke="#2ad"/><text stroke-opacity="0">near</text>',
        ),
        # an outline of two parts stays as it is
        (
            ['<path transform="translate(5,6)" d="M0,0h1v1ZM3,3h1v1Z" fill="#e37"/>'] * 2,
            '<path transform="translate(5,6)" d="M0,0h1v1ZM3,3h1v1Z" fill="#e37"/>' * 2,
        ),
        (['<path d="M0,1L1,-0.04L2,3.25" stroke="#2ad"/>'], '<path d="M0,1L1,0L2,3.2" stroke="#2ad"/>'),
    ],
)
def test_marks_of_one_look_are_one_path(elements, path):
    assert shrink_svg("".join(elements)) == path


def test_marks_of_two_looks_keep_their_order():
    marks = [
        f'<path d="M{x},250h1.5v10h-1.5Z" fill="{c}"/>' for x, c in ((1, "#e37"), (2, "#2ad"), (1, "#e37"))
    ]
    assert re.findall("#...", shrink_svg("".join(marks))) == ["#e37", "#2ad", "#e37"]
