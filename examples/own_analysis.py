"""An analysis of your own, named by its module: its sentence, table column and chart are on the page."""

import torch
from torch import nn

import opnorm
from opnorm.analyses import Analysis, Row, logits_of
from opnorm.data import Dataset, digits
from opnorm.models import cnn
from opnorm.report import Chart, Column, Heading, Panel, Sample, draw_curves, histogram_points, method_of
from opnorm.training import TrainingSettings, train


def confidence() -> Analysis:
    """The largest class probability of every test image."""

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        largest = torch.cat([logits.softmax(1).amax(1) for _, _, logits in logits_of(model, data.test)])
        return [{"mean": largest.mean().item(), "values": largest.tolist()}]

    def chart(rows: list[Row], methods: list[str]) -> Chart:
        heading = Heading("confidence", "Confidence", "The share of images with this largest probability.")
        points = histogram_points([Sample(method_of(r), "test", r["values"]) for r in rows], ends=(0, 1))
        return draw_curves(points, methods, heading, {"test": Panel("Test images", percent=True)}, dots=False)

    column = Column("confidence", "confidence", "percent", None, "Mean of the largest class probability.")
    text = "The mean confidence is {:.1%}."
    return Analysis(rows, lambda r: text.format(r[0]["mean"]), lambda r: [(column, r[0]["mean"])], chart)


if __name__ == "__main__":
    torch.manual_seed(0)
    data = digits()
    model = cnn(in_shape=data.image_shape, width=8)
    train(model, data, TrainingSettings(epochs=3))
    report = opnorm.analyze({"cnn": model.eval()}, data, ["accuracy", "own_analysis.confidence()"])
    print(report.write("report"))
