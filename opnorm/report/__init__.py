"""What a study found, as one page that works offline, as figures and as JSON.

`Report` is plain data (`opnorm.report.model`); `opnorm.report.charts` makes its charts from rows of
numbers; `write_page`, `write_figures` and `write_json` write it. Nothing in this package imports torch.
"""

from opnorm.report.charts import (
    accuracy_against_eps,
    accuracy_against_norm,
    against_epoch,
    layer_norms,
    margins,
)
from opnorm.report.model import Chart, Column, Report, Stat, Table
from opnorm.report.page import write_figures, write_json, write_page

__all__ = [
    "Chart",
    "Column",
    "Report",
    "Stat",
    "Table",
    "accuracy_against_eps",
    "accuracy_against_norm",
    "against_epoch",
    "layer_norms",
    "margins",
    "write_figures",
    "write_json",
    "write_page",
]
