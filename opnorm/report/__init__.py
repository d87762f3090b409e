"""Reports: one page that works offline, figures, tables and JSON, from plain data.

:class:`Report` is the content (:mod:`opnorm.report.document`); :func:`draw_curves` and the charts that several pages share
make its charts; :func:`write_page`, :func:`write_figures`, :func:`write_tables` and :func:`write_json` write it, and
:func:`keep_report` writes it for a repository. Nothing in this package imports torch, and altair is loaded when a chart is
drawn.
"""

from opnorm.report.charts import accuracy_against_eps, accuracy_against_norm, eps_axis
from opnorm.report.curves import Axis, Heading, Panel, Point, draw_curves, method_of
from opnorm.report.document import (
    NOT_RUN_YET,
    Cell,
    Chart,
    Column,
    Progress,
    Report,
    Section,
    Stat,
    Table,
    known,
)
from opnorm.report.epochs import against_epoch, epoch_charts, layers_against_epoch, weights_against_epoch
from opnorm.report.histograms import Sample, histogram_points
from opnorm.report.kept import keep_report, read_report
from opnorm.report.page import load_libraries, write_figures, write_json, write_page
from opnorm.report.table_files import slug, to_csv, to_latex, to_markdown, write_tables
from opnorm.report.theme import NORMS, norm_name, one_sentence, significant

__all__ = [
    "NORMS",
    "NOT_RUN_YET",
    "Axis",
    "Cell",
    "Chart",
    "Column",
    "Heading",
    "Panel",
    "Point",
    "Progress",
    "Report",
    "Sample",
    "Section",
    "Stat",
    "Table",
    "accuracy_against_eps",
    "accuracy_against_norm",
    "against_epoch",
    "draw_curves",
    "epoch_charts",
    "eps_axis",
    "histogram_points",
    "keep_report",
    "known",
    "layers_against_epoch",
    "load_libraries",
    "method_of",
    "norm_name",
    "one_sentence",
    "read_report",
    "significant",
    "slug",
    "to_csv",
    "to_latex",
    "to_markdown",
    "weights_against_epoch",
    "write_figures",
    "write_json",
    "write_page",
    "write_tables",
]
