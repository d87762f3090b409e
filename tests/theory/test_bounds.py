import math

import pytest
import torch
from torch import nn

from opnorm import models
from opnorm._core.linear_map import linear_map
from opnorm.errors import AttackError, ModelError, SpecError
from opnorm.theory import Covering, generalization_bound, input_gradient_bound


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows, dtype=torch.float32)
    return layer


GIVEN = {
    "v_min": 0.25, "gamma": 10.0, "covering": Covering(eps=0.5, constant=1.5, dimension=2), "samples": 1000, "eta": 0.1
}  # fmt: skip


def covering(**change):
    return {"covering": GIVEN["covering"]._replace(**change)}


class TestInputGradient:
    def test_by_hand(self):
        """W = (3, 4; 0, 0), w_1 = (1, 0), w_2 = (0, 2): Frobenius norm 5, open ReLU: the gradients are (3, 4) and 0."""
        net = nn.Sequential(linear([3.0, 4.0], [0.0, 0.0]), nn.ReLU(), linear([1.0, 0.0], [0.0, 2.0]))
        x, y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([1, 0])
        found = input_gradient_bound(net, x, y)
        assert found.rows.tolist() == [1, 2]
        assert found.logits.tolist() == pytest.approx([5, 10], rel=1e-9)
        assert found.measured_logits.tolist() == [[5, 0], [0, 0]]
        p = 1 / (1 + math.exp(-7))  # logits 7 and 0
        assert found.loss.tolist() == pytest.approx([p * 5 + p * 10, 0.5 * 5 + 0.5 * 10], rel=1e-6)
        assert found.measured_loss.tolist() == pytest.approx([p * 5, 0], rel=1e-6)
        assert found.constant == pytest.approx(1, abs=1e-9)
        assert [f.name for f in found.factors] == ["0", "1"]

    @pytest.mark.each_value
    @pytest.mark.parametrize(
        "make",
        [
            lambda: models.mlp((1, 8, 8), width=20, std=0.5),
            lambda: models.cnn((1, 8, 8), width=4),
            lambda: models.resnet18((1, 8, 8), width=4),
            lambda: models.wrn(10, 1, "fixup", "convex", in_shape=(1, 8, 8)),
            lambda: models.wrn(16, 1, "fixup", "sum", in_shape=(1, 8, 8)),
            lambda: models.wrn(10, 1, "bn", "convex", in_shape=(1, 8, 8)),
        ],
        ids=["mlp", "cnn", "resnet", "wrn-ca", "wrn", "wrn-bn"],
    )
    @pytest.mark.parametrize("seed", range(3))
    def test_holds(self, make, seed):
        torch.manual_seed(seed)
        net = make()
        for p in net.parameters():
            p.data += 0.05 * torch.randn_like(p)
        before = [p.detach().clone() for p in net.parameters()]
        x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
        net.train()
        found = input_gradient_bound(net, x, y)
        assert net.training
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert found.measured_logits.shape == (8, 10)
        assert (found.measured_logits > 0).any()
        assert (found.measured_logits <= found.logits).all()
        assert (found.measured_loss <= found.loss).all()
        assert (found.loss <= 2 * found.logits.max()).all()
        # ℓ_ce's gradient, the other way round
        z = x.clone().requires_grad_()
        net.eval()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), y) * len(y), z)
        assert torch.allclose(grad.flatten(1).norm(dim=1), found.measured_loss, rtol=1e-4)

    def test_convolutions_count_as_matrices(self):
        """With Frobenius norms of the kernel alone the inequality is false; pixels on the edge are read less often."""
        conv = nn.Conv2d(1, 2, 3, stride=2, padding=1, dilation=1)
        circular = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
        net = nn.Sequential(conv, nn.ReLU(), circular, nn.Flatten(), nn.Linear(18, 2))
        found = input_gradient_bound(net, torch.rand(1, 1, 5, 5), torch.tensor([0]))
        for step, layer, shape in ((0, conv, (1, 5, 5)), (2, circular, (2, 3, 3))):
            expected = float(linear_map(layer, shape).to_dense().norm())
            assert found.factors[step].factor == pytest.approx(expected, rel=1e-12)
            assert expected > float(layer.weight.detach().norm())

    def test_convex_aggregation_takes_away_the_exponent(self):
        """Identity-like blocks: the plain sum's bound doubles with every block, the convex one's does not."""
        x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
        sums = {}
        for kind in ("convex", "sum"):
            net = models.wrn(16, 1, "fixup", kind, in_shape=(1, 8, 8), classes=2)
            nn.init.normal_(net.classifier.weight)
            found = input_gradient_bound(net, x, y)
            sums[kind] = math.prod(f.sum for f in found.factors)
            expected = found.rows * math.prod(f.factor for f in found.factors) * sums[kind]
            assert torch.allclose(found.logits, expected)
            blocks = [f for f in found.factors if f.kind == "block"]
            assert len(blocks) == 6
            # Fixup's branches end with zeros: what is left of a block is its shortcut
            assert [f.factor for f in blocks][1::2] == pytest.approx([1, 1, 1])
        assert sums == {"convex": 1, "sum": 2**6}

    def test_block_by_hand(self):
        """max(‖shortcut‖, ‖branch‖), both behind the activation."""
        net = models.wrn(10, 1, "fixup", "convex", in_shape=(1, 8, 8), classes=2)
        block = net.stage2[0]
        for p in block.parameters():
            torch.nn.init.normal_(p)
        found = input_gradient_bound(net, torch.rand(1, 1, 8, 8), torch.tensor([0]))
        parts = [
            float(linear_map(layer, shape).to_dense().norm())
            for layer, shape in (
                (block.shortcut, (16, 8, 8)),
                (block.branch.conv1, (16, 8, 8)),
                (block.branch.conv2, (32, 4, 4)),
            )
        ]
        step = next(f for f in found.factors if f.name == "stage2.0")
        assert step.factor == pytest.approx(max(parts[0], parts[1] * parts[2]), rel=1e-9)

    @pytest.mark.parametrize(
        ("net", "message"),
        [
            (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "ends with a ReLU"),
            (nn.TransformerEncoderLayer(4, 1), "expected nn.Sequential"),
            (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, eps=0), nn.Linear(4, 2)), r"^1: no Lipschitz"),
        ],
    )
    def test_other_networks_are_refused(self, net, message):
        with pytest.raises(ModelError, match=message):
            input_gradient_bound(net, torch.rand(2, 4), torch.tensor([0, 1]))

    def test_labels_are_classes(self):
        with pytest.raises(AttackError, match="2 classes"):
            input_gradient_bound(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4), torch.tensor([0, 2]))


class TestGeneralization:
    def test_by_hand(self):
        net = nn.Sequential(
            linear([3.0, 0.0], [0.0, 2.0]), nn.ReLU(), linear([1.0, 0.0], [4.0, 0.0], [4.0, 7.0])
        )
        found = generalization_bound(net, torch.zeros(1, 2), **GIVEN)
        assert found.smallest == (("0", pytest.approx(2, rel=1e-6)),)
        assert found.row_gap == 3
        assert found.u_min == pytest.approx(3 * 2 * 0.25, rel=1e-6)
        assert found.margin_term == pytest.approx(1 - 1.5 / 10, rel=1e-6)
        assert math.exp(found.covering.log_number) == pytest.approx(9)
        assert found.covering_term == pytest.approx(2 * math.log(2) * 9 / 1000)
        assert found.confidence_term == pytest.approx(2 * math.log(10) / 1000)
        expected = 0.85 + math.sqrt(2 * math.log(2) * 9 / 1000 + 2 * math.log(10) / 1000)
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert not found.vacuous

    def test_each_term_goes_the_way_it_should(self):
        net = nn.Sequential(linear([3.0, 0.0], [0.0, 2.0]), nn.ReLU(), linear([1.0, 0.0], [4.0, 0.0]))

        def value(**change):
            return generalization_bound(net, torch.zeros(1, 2), **GIVEN | change).value

        assert value(v_min=1.0) < value() < value(v_min=0)
        assert value(gamma=1.5) < value()
        assert value(samples=2000) < value()
        assert value(**covering(dimension=3)) > value()
        assert value(eta=0.01) > value()
        assert value(**covering(constant=2)) > value()
        assert generalization_bound(net, torch.zeros(1, 2), **GIVEN | {"v_min": 99}).margin_term == 0

    def test_an_image_manifold_is_out_of_range_and_vacuous(self):
        net = models.mlp((1, 4, 4), width=8, classes=3, std=0.5)
        found = generalization_bound(
            net, torch.zeros(1, 1, 4, 4), **GIVEN | covering(dimension=3000, constant=10)
        )
        assert found.covering.log_number == pytest.approx(3000 * math.log(20))
        assert found.covering_term == math.inf
        assert found.vacuous
        assert found.smallest[0] == ("0", 2.0)

    def test_singular_values_are_those_of_the_matrix(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
        found = generalization_bound(net, torch.zeros(2, 1, 8, 8), **GIVEN)
        values = torch.linalg.svdvals(linear_map(conv, (1, 8, 8)).to_dense())
        assert dict(found.smallest)["0"] == pytest.approx(float(values.min()), rel=1e-9)
        rows = net[-1].weight.detach().double()
        gaps = (rows[:, None] - rows[None]).norm(dim=2) + 9 * torch.eye(4)
        assert found.row_gap == pytest.approx(float(gaps.min()), rel=1e-9)

    def test_batch_norm_and_average_pooling_are_linear_layers(self):
        """The product of the bounds is one for the convolution with its batch norm folded in."""
        torch.manual_seed(0)
        conv, bn, pool = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.AvgPool2d(2)
        bn.running_var.uniform_(0.5, 2)
        net = nn.Sequential(conv, bn, nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 3)).eval()
        smallest = dict(generalization_bound(net, torch.zeros(1, 1, 8, 8), **GIVEN).smallest)
        assert list(smallest) == ["0", "1", "3"]
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().double()
        assert smallest["1"] == pytest.approx(float(scale.abs().min()))
        assert smallest["3"] == pytest.approx(0.5)
        folded = linear_map(conv, (1, 8, 8)).to_dense() * scale.repeat_interleave(64)[:, None]
        assert 0 < smallest["0"] * smallest["1"] <= float(torch.linalg.svdvals(folded)[-1])

    def test_the_smallest_singular_value_of_a_large_convolution_is_bounded_from_below(self):
        conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        torch.manual_seed(0)
        with torch.no_grad():
            nn.init.dirac_(conv.weight).add_(0.01 * torch.randn(conv.weight.shape))
        net = nn.Sequential(conv, nn.Flatten(), nn.Linear(24 * 24, 2))
        (_, smallest), *_ = generalization_bound(net, torch.zeros(1, 1, 24, 24), **GIVEN).smallest
        want = float(torch.linalg.svdvals(linear_map(conv, (1, 24, 24)).to_dense())[-1])
        assert 0.9 * want < smallest <= want

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"gamma": 0}, "gamma=0: expected a finite number above 0"),
            (covering(eps=-1), "eps=-1"),
            ({"eta": 1}, "eta=1"),
            ({"eta": 0}, "eta=0"),
            ({"samples": 1.5}, "whole number"),
            (covering(dimension=math.nan), "dimension=nan"),
            (covering(constant=True), "constant=True"),
            ({"v_min": math.inf}, "v_min=inf"),
        ],
    )
    def test_numbers_out_of_range(self, change, message):
        net = nn.Sequential(nn.Linear(4, 2))
        with pytest.raises(SpecError, match=message):
            generalization_bound(net, torch.rand(2, 4), **GIVEN | change)

    @pytest.mark.parametrize(
        ("net", "message"),
        [
            (models.resnet18((1, 8, 8), width=4), "is a Residual; expected"),
            (nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2)), "1 is a Tanh"),
            (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "at least 2 outputs"),
        ],
    )
    def test_other_networks(self, net, message):
        x = torch.rand(1, 64) if isinstance(net[0], nn.Linear) else torch.rand(1, 1, 8, 8)
        with pytest.raises(ModelError, match=message):
            generalization_bound(net, x, **GIVEN)
