"""A form of weights is made once for each state of the weights and each way to make it."""

import copy

import torch

from opnorm._core.frozen_layers import WeightForm


def test_a_form_is_kept_until_the_weights_or_the_arguments_change():
    calls = []

    def rows(weight, *which):
        calls.append(which)
        return weight[list(which)] * 2

    weight, form = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), WeightForm(rows)
    assert form(weight, 0, 1).tolist() == form(weight, 0, 1).tolist() == [2, 4]
    assert len(calls) == 1
    assert form(weight, 2).tolist() == [6]
    with torch.no_grad():
        torch._foreach_copy_([weight], [weight + 1])
    assert form(weight, 2).tolist() == [8]
    assert not form(weight, 2).requires_grad  # the weights are frozen
    assert copy.deepcopy(form).known is None
    assert copy.deepcopy(form)(weight, 1).tolist() == [6]
