"""AutoAttack's accuracy, against AutoAttack itself."""

import json

from opnorm.analyses import autoattack_accuracy
from opnorm.attacks import AutoAttack
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


def test_autoattack_accuracy(model):
    x, y = pixels(data().test)
    x, y = x[100:160], y[100:160]
    toy = data()
    toy = type(toy)(
        "toy", toy.train, type(toy.test)(toy.test.images[100:], toy.test.labels[100:]), toy.classes
    )
    (row,) = autoattack_accuracy(eps=4 / 255, version="rand", points=3)(model, toy)
    result = AutoAttack(eps=4 / 255, version="rand").evaluate(model, x[:3], y[:3])
    assert row["accuracy"] == result.robust_accuracy
    assert (row["low"], row["high"]) == result.interval
    assert row["points"] == 3
    assert row["attack"] == 'autoattack(norm=inf, eps=4/255, version="rand")'
    assert row["misclassified"] == {stage.name: stage.misclassified for stage in result.stages}
    assert isinstance(row["masking_passed"], bool)
    json.dumps(row, allow_nan=False)
