"""The papers' networks: published sizes, how they start, that they train, and what the norms say of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import nn

from opnorm import measure
from opnorm._core.linear_map import linear_map
from opnorm.errors import ModelError
from opnorm.models import (
    cnn,
    cnn7,
    file,
    mlp,
    regnetx_200mf,
    resnet,
    resnet18,
    save,
    senet18,
    vgg11,
    vgg16,
    wrn,
    wrn50_2,
)
from opnorm.models.initialization import fixup, he
from opnorm.models.modules import ConvexSum, Normalize
from opnorm.models.stages import ChannelAttention, PaddedShortcut, PreActivated, Residual, bottleneck
from opnorm.norms import lipschitz_bound, operator_norm, trace
from opnorm.spec import build, names, spec_of

# the small member of every family; a new network joins every test here by a line
SMALL = {
    "cnn": "cnn(width=4)",
    "cnn7": "cnn7(width=2)",
    "max_mahalanobis": "max_mahalanobis(cnn(width=4), radius=3, features=7)",
    "mlp": "mlp(width=8)",
    "regnet": "regnetx_200mf(width=1)",
    "resnet": "resnet(depth=8, width=4)",
    "resnet fixup": "resnet(depth=8, width=3, norm='fixup')",
    "resnet18": "resnet18(width=2)",
    "senet18": "senet18(width=2)",
    "vgg11": "vgg11(width=2)",
    "vgg16": "vgg16(width=2)",
    "parallel_convs": "parallel_convs(kernels=((3, 3, 2, 3), (5, 5, 3, 4)), size=8)",
    "wrn": "wrn(depth=10, width=1)",
    "wrn convex": "wrn(depth=10, width=1, aggregation='convex')",
    "wrn fixup": "wrn(depth=16, width=1, norm='fixup')",
    "wrn fixup convex": "wrn(depth=10, width=1, norm='fixup', aggregation='convex')",
    "wrn50_2": "wrn50_2(width=1)",
}


def made(text, **known):
    torch.manual_seed(0)
    return build(text, "model", **known)


def shaken(model):
    """The model with every number moved off its start, so that no zero hides anything."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean += 0.1 * torch.randn(m.running_mean.shape, generator=generator)
                m.running_var += torch.rand(m.running_var.shape, generator=generator)
    return model.double().eval()


def weights(model, kind=nn.Conv2d):
    return [m.weight for m in model.modules() if isinstance(m, kind)]


# ---------------------------------------------------------------- sizes and shapes


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (mlp, 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10),
        (cnn, 128 * 9 + 128 + 128 * 128 * 9 + 128 + 128 * 784 * 10 + 10),
        (resnet, 269_722),
        (lambda: resnet(depth=56), 853_018),
        (lambda: resnet(depth=110), 1_727_962),
        (vgg11, 9_231_114),
        (resnet18, 11_173_962),
        (senet18, 11_260_354),
        (regnetx_200mf, 2_321_946),
        (vgg16, 14_714_688 + (512 * 512 + 512) + (512 * 10 + 10)),
        (cnn7, 1_145_408 + 2 * 2 * (64 + 128 + 256) + 4096 * 10 + 10),
        (wrn, 36_479_194),
        (lambda: wrn(16, 2), 691_674),
        (lambda: wrn(40, 2), 2_243_546),
        (wrn50_2, 67_236_360),
        # without batch norm: two numbers a channel less
        (lambda: resnet(56, norm="fixup"), 853_018 - 2 * (16 + 18 * (16 + 32 + 64))),
        (lambda: wrn(16, 2, norm="fixup"), 691_674 - 2 * (16 + 4 * 32 + 4 * 64 + 3 * 128 + 128)),
        (lambda: wrn(16, 2, aggregation="convex"), 691_674 + 2 * 6),
    ],
)
def test_published_sizes(make, parameters):
    assert sum(p.numel() for p in make().parameters()) == parameters


@pytest.mark.parametrize("text", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 14), (3, 1, 1)])
def test_any_size_of_image(text, shape):
    model = made(text, in_shape=shape, classes=4, mean=0.3, std=0.5)
    x = torch.rand(2, *shape)
    assert model(x).shape == (2, 4)
    model.eval()
    assert torch.allclose(model(x)[1:], model(x[1:]), atol=1e-5)
    assert isinstance(model[0], Normalize)
    assert str(spec_of(model)).startswith(text.partition("(")[0])
    twin = made(text, in_shape=shape, classes=4)
    assert all(map(torch.equal, twin.parameters(), model.parameters())), "weights follow the global seed"


def test_depths_and_strides():
    assert len([m for m in mlp((1, 4, 4), width=3, depth=4) if isinstance(m, nn.Linear)]) == 5
    model = cnn((1, 9, 7), width=2, depth=3, stride=2)
    assert model(torch.rand(2, 1, 9, 7)).shape == (2, 10)
    assert len([m for m in model if isinstance(m, nn.Conv2d)]) == 3


def test_where_the_map_shrinks():
    """Sizes of the maps that each stage works on."""

    def sizes(model, shape=(3, 32, 32)):
        found = [
            v.out_shape[-1] for v in trace(model, torch.rand(1, *shape)) if isinstance(v.layer, nn.Conv2d)
        ]
        return [n for i, n in enumerate(found) if n > 1 and n != found[i - 1]]

    assert sizes(vgg11(width=1)) == [32, 16, 8, 4, 2]
    assert sizes(vgg16(width=1)) == [32, 16, 8, 4, 2]
    assert sizes(vgg16(width=1, pools=2)) == [32, 16, 8]
    assert sizes(vgg11(width=1, in_shape=(3, 28, 28)), (3, 28, 28)) == [28, 14, 7, 4, 2]
    assert sizes(cnn7(width=1)) == [32, 16, 8]
    assert trace(resnet18(width=1), torch.rand(1, 3, 32, 32))[-3].in_shape == (8, 4, 4)
    assert trace(wrn(10, 1), torch.rand(1, 3, 32, 32))[-3].in_shape == (64, 8, 8)
    assert trace(wrn50_2(width=1), torch.rand(1, 3, 56, 56))[-3].in_shape == (32, 7, 7)
    assert trace(regnetx_200mf(width=1), torch.rand(1, 3, 32, 32))[-3].in_shape == (46, 8, 8)
    assert trace(senet18(width=1), torch.rand(1, 3, 32, 32))[-3].in_shape == (8, 4, 4)


def test_channels():
    def kinds(model):
        return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]

    wide, grouped = kinds(wrn50_2(width=4)), kinds(regnetx_200mf())[1:]
    assert [c.out_channels for c in wide] == [4] + 3 * [8] + 4 * [16] + 6 * [32] + 3 * [64]
    assert [c.out_channels for c in grouped] == [24, 56] + 4 * [152] + 7 * [368]
    assert {c.out_channels // c.groups for c in grouped} == {8}
    assert [c.out_channels for c in kinds(vgg16(width=4))] == [4] * 2 + [8] * 2 + [16] * 3 + [32] * 6
    assert [c.out_channels for c in kinds(vgg11(width=4))] == [4, 8, 16, 16, 32, 32, 32, 32]
    assert [c.out_channels for c in kinds(wrn(28, 2))] == [16] + [32] * 8 + [64] * 8 + [128] * 8


def test_names_can_be_read():
    assert "stage2.0.branch.conv1.weight" in resnet18(width=1).state_dict()
    assert "stage3.1.branch.gate.excite.conv2.bias" in senet18(width=1).state_dict()
    assert "stage1.0.aggregate.logits" in wrn(10, 1, aggregation="convex").state_dict()
    assert {"conv13.bias", "hidden.weight", "classifier.bias"} <= vgg16(width=1).state_dict().keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrn(depth=18)", "depth=18: expected 6 n [+] 4"),
        ("wrn(depth=4)", "depth=4"),
        ("wrn(norm='batch')", "norm='batch': expected 'bn' or 'fixup'"),
        ("wrn(aggregation='mean')", "aggregation='mean': expected 'sum' or 'convex'"),
        ("resnet(norm='none')", "norm='none': expected 'bn' or 'fixup'"),
        ("vgg16(dropout=1.0)", r"dropout=1.0: expected a share in \[0, 1\)"),
        ("vgg16(dropout=True)", "dropout=True"),
        ("vgg16(dropout=-0.5)", "dropout=-0.5"),
        ("vgg16(pools=6)", "pools=6: expected 0, 1, 2, 3, 4 or 5"),
        *[
            (f"{name}({bad})", bad.split("=")[0])
            for name in ("vgg11", "vgg16", "cnn7", "resnet18", "senet18", "regnetx_200mf", "wrn", "wrn50_2")
            for bad in ("width=0", "classes=1.5", "in_shape=(3, 0, 8)", "std=0", "mean=(0.1, 0.2)")
        ],
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(ModelError, match=message):
        build(text, "model")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(depth=18), "depth=18: expected 6 n"),
        (lambda: resnet(depth=2), "depth=2"),
        (lambda: resnet(width=0), "width=0: expected a whole number"),
        (lambda: mlp(classes=0), "classes=0"),
        (lambda: mlp(depth=-1), "depth=-1"),
        (lambda: cnn(stride=1.5), "stride=1.5"),
        (lambda: cnn(in_shape=(1, 8)), r"in_shape=\(1, 8\): expected \(channels, height, width\)"),
        (lambda: cnn(in_shape=(1, 0, 8)), "in_shape=0"),
        (lambda: cnn(width=True), "width=True"),
        (lambda: cnn(std=0.0), "std=0.0"),
        (lambda: cnn(std=math.nan), "std=nan"),
        (lambda: cnn(mean=math.inf), "mean=inf"),
        (
            lambda: cnn((3, 8, 8), mean=(0.1, 0.2)),
            r"mean=\(0.1, 0.2\): expected one number, or one for each of 3",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ModelError, match=message):
        make()


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_normalization_is_inside(name):
    shape = (3, 8, 8)
    plain = made(SMALL[name], in_shape=shape).eval()
    with_mean = made(SMALL[name], in_shape=shape, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    x = torch.rand(2, *shape)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(with_mean(x), plain((x - mean) / std), atol=1e-5)
    assert not any("mean" in k for k, _ in with_mean.named_parameters())
    assert "0.mean" in with_mean.state_dict()


# ---------------------------------------------------------------- blocks, against their formulae


def test_blocks_by_hand():
    x = torch.randn(2, 4, 6, 6)
    block = bottleneck(4, 3, 8, 2).eval()
    inner = block.branch.conv3(block.branch.conv2(block.branch.conv1(x).relu() / (1 + 1e-5) ** 0.5).relu())
    scaled = F.batch_norm(inner, torch.zeros(8), torch.ones(8)) / (1 + 1e-5) ** 0.5
    expected = (scaled + block.shortcut.conv(x) / (1 + 1e-5) ** 0.5).relu()
    assert torch.allclose(block(x), expected, atol=1e-5)
    model = wrn(10, 1, norm="fixup").stage2[0]
    nn.init.normal_(model.branch.conv2.weight)
    x = torch.randn(2, 16, 6, 6)
    branch = model.branch.conv2(model.branch.conv1(x.relu()).relu())
    assert torch.allclose(model(x), model.shortcut(x.relu()) + branch, atol=1e-5)
    model = wrn(16, 1, norm="fixup").stage2[1]
    nn.init.normal_(model.branch.conv2.weight)
    x = torch.randn(2, 32, 6, 6)
    assert torch.allclose(model(x), x + model.branch.conv2(model.branch.conv1(x.relu()).relu()), atol=1e-5)


def test_channel_attention():
    attention = ChannelAttention(32)
    x = torch.randn(2, 32, 5, 5)
    hidden = F.linear(
        x.mean((2, 3)), attention.excite.conv1.weight.flatten(1), attention.excite.conv1.bias
    ).relu()
    expected = F.linear(
        hidden, attention.excite.conv2.weight.flatten(1), attention.excite.conv2.bias
    ).sigmoid()
    assert hidden.shape == (2, 2), "a sixteenth"
    assert torch.allclose(attention(x), x * expected[..., None, None], atol=1e-6)


def test_convex_sum():
    add = ConvexSum(4)
    x, y = torch.randn(2, 3, 2, 2, 2)
    assert torch.allclose(add(x, y), 0.8 * x + 0.2 * y, atol=1e-6)
    add.logits.data = torch.tensor([1.0, -2.0])
    a = math.exp(1) / (math.exp(1) + math.exp(-2))
    assert torch.allclose(add(x, y), a * x + (1 - a) * y, atol=1e-6)
    add(x, y).sum().backward()
    assert add.logits.grad.abs().sum() > 0, "learned"
    for model in (wrn(28, 1, aggregation="convex"), wrn(10, 1, aggregation="convex")):
        sums = [m for m in model.modules() if isinstance(m, ConvexSum)]
        assert len(sums) == len([m for m in model.modules() if isinstance(m, PreActivated)])
        passed = math.prod(s.logits.softmax(0)[0].item() for s in sums)
        assert math.exp(-1) < passed < 0.5


# ---------------------------------------------------------------- how they start


def test_he_and_xavier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(30, 60, 3), nn.Flatten(), nn.Linear(300, 200))
    he(model)
    assert model[0].weight.var().item() == pytest.approx(2 / 270, rel=0.05)
    assert model[2].weight.var().item() == pytest.approx(2 / 300, rel=0.05)
    wide = wrn50_2(width=8).stage1[0].branch.conv2.weight
    limit = math.sqrt(6 / (2 * 9 * 16))
    assert wide.abs().max().item() == pytest.approx(limit, rel=1e-2)
    assert wide.var().item() == pytest.approx(limit**2 / 3, rel=0.05)
    torch.manual_seed(0)
    vgg = vgg16(width=8)
    assert all(not m.bias.any() for m in vgg if isinstance(m, nn.Conv2d | nn.Linear))
    assert vgg.conv12.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    wide = wrn50_2(width=8)
    assert wide.stage4[1].branch.conv1.weight.abs().max().item() == pytest.approx(
        math.sqrt(6 / (256 + 128)), rel=1e-2
    )


@pytest.mark.parametrize(
    "text", ["resnet(depth=20, norm='fixup')", "wrn(16, 2, 'fixup')", "wrn(16, 2, 'fixup', 'convex')"]
)
def test_fixup(text):
    """Branches end in zero, their other layers are He / sqrt(L), everything else is He, and the logits are zero."""
    model = made(text)
    blocks = [m for m in model.modules() if isinstance(m, Residual | PreActivated)]
    L = 9 if text.startswith("resnet") else 6
    assert len(blocks) == L
    inside = [w for b in blocks for w in weights(b.branch)]
    for first, last in zip(inside[::2], inside[1::2], strict=True):
        assert not last.any()
        assert first.var().item() * L == pytest.approx(2 / first[0].numel(), rel=0.25)
    for w in weights(model):
        if not any(w is v for v in inside):
            assert w.var().item() == pytest.approx(2 / w[0].numel(), rel=0.4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert not model(torch.rand(2, 3, 8, 8)).any()


def test_fixup_of_branches_of_three_layers():
    torch.manual_seed(0)
    model = nn.Sequential(*(bottleneck(40, 40, 40, 1) for _ in range(16)))
    fixup(model)
    conv1, conv2, conv3 = weights(model[5].branch)
    assert conv1.var().item() == pytest.approx(2 / 40 / 16**0.5, rel=0.15), "L^(-1/4) each"
    assert conv2.var().item() == pytest.approx(2 / 360 / 16**0.5, rel=0.1)
    assert not conv3.any()


def test_fixup_blocks_start_as_the_identity():
    x = torch.rand(2, 16, 8, 8)
    model = resnet(depth=20, norm="fixup")
    assert torch.equal(model[3](x), x), "nothing negative comes out of the block before"
    model = wrn(16, 1, norm="fixup")
    assert torch.equal(model.stage1[1](x - 0.5), x - 0.5)


@pytest.mark.parametrize(
    ("text", "lr"),
    [
        ("resnet(depth=56, width=4, norm='fixup')", 0.05),
        pytest.param("wrn(depth=40, width=1, norm='fixup')", 0.03, marks=pytest.mark.slow),
        ("wrn(depth=28, width=1, norm='fixup', aggregation='convex')", 0.03),
        ("wrn(depth=28, width=1, aggregation='convex')", 0.03),
    ],
)
def test_deep_networks_train(text, lr):
    """Two classes that differ in brightness; without Fixup's scales the depth-56 net's loss is not finite for long."""
    model = made(text, classes=2, in_shape=(1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(16) % 2
    x = 0.5 * torch.rand(16, 1, 8, 8, generator=generator) + 0.5 * y.view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert min(losses[-3:]) < 0.5 < losses[0]
    branches = [m.branch for m in model.modules() if isinstance(m, Residual | PreActivated)]
    assert all(w.any() for b in branches for w in weights(b)), "every branch has begun to learn"


def test_dropout_is_random_only_in_training():
    model = made("vgg16(width=2)").train()
    x = torch.rand(8, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    still = made("vgg16(width=2, dropout=0)").train()
    assert torch.equal(still(x), model(x)), "the same weights"


# ---------------------------------------------------------------- norms


def test_normalize_norms():
    (row,) = measure(Normalize(2, 0.5, (0.5, 0.25)), torch.rand(1, 2, 3, 3)).rows
    assert {float(n.lower) for n in row.norms.values()} == {4.0}
    assert all(n.exact for n in row.norms.values())


def test_the_shortcut_without_parameters():
    x = torch.rand(2, 4, 5, 5)
    y = PaddedShortcut(2, 4)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y.shape == (2, 8, 3, 3)
    assert y[:, :2].abs().sum() + y[:, 6:].abs().sum() == 0
    M = linear_map(PaddedShortcut(2, 4), (4, 5, 5)).to_dense()
    for p in (1, 2, math.inf):
        norm = operator_norm(PaddedShortcut(2, 4), p, (4, 5, 5))
        assert norm.exact
        assert float(norm.upper) == float(torch.linalg.matrix_norm(M, p)) == 1


@pytest.mark.parametrize("text", SMALL.values(), ids=SMALL)
def test_norms_and_bounds(text):
    """Every layer with a weight has its norms, and the bound along the graph is above what inputs show, or says why not."""
    shape = (1, 6, 5)
    model = shaken(made(text, in_shape=shape, classes=3, mean=0.4, std=0.3))
    x, y = torch.rand(2, 8, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # ℓ2 takes seconds on some, and the layers of one kind of network are alike
    ords = (1, math.inf) if text.startswith(("regnet", "wrn", "resnet18")) else (1, 2, math.inf)
    table = measure(model, x, ords=ords)
    kinds = "Conv2d", "Linear", "BatchNorm2d", "Normalize"
    known = [row for row in table.rows if row.kind in kinds]
    assert len(weights(model)) + len(weights(model, nn.Linear)) == sum(row.has_weight for row in known)
    assert all(row.norms.keys() == set(ords) for row in known)
    assert not table.uncalled
    for p in ords:
        bound = lipschitz_bound(model, x[:1], p, table=table)
        if text.startswith("senet18"):
            assert bound.value is None
            assert "a product of two values that both depend on the input" in bound.reason
            continue
        assert bound.value is not None, bound.reason
        with torch.no_grad():
            slopes = (model(x) - model(y)).norm(p, dim=1) / (x - y).flatten(1).norm(p, dim=1)
        assert 0 < slopes.max() <= bound.value


def scalar_block(aggregation):
    """A block whose shortcut is the identity and whose branch has the norm 3 · 2."""
    block = copy.deepcopy(wrn(16, 1, "fixup", aggregation).stage1[1])
    with torch.no_grad():
        for layer, gain in ((block.branch.conv1, 3.0), (block.branch.conv2, 2.0)):
            nn.init.dirac_(layer.weight)
            layer.weight *= gain
    return block


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_sums_in_the_bound(p):
    x = torch.rand(1, 16, 4, 4)
    bound = lipschitz_bound(scalar_block("sum"), x, p).value
    assert bound == pytest.approx(1 + 6, rel=0.02)
    block = scalar_block("convex")
    block.aggregate.logits.data = torch.tensor([0.0, math.log(3)])
    assert lipschitz_bound(block, x, p).value == pytest.approx(0.25 * 1 + 0.75 * 6, rel=0.02)


def test_norms_of_a_network_as_fixup_starts_it():
    model = made("resnet(depth=8, width=2, norm='fixup')", in_shape=(1, 6, 6))
    table = measure(model, torch.rand(1, 1, 6, 6))
    assert table.spectral_complexity.upper == 0
    assert lipschitz_bound(model, torch.rand(1, 1, 6, 6), table=table).value == 0


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("text", SMALL.values(), ids=SMALL)
def test_files_remember_the_network(text, tmp_path):
    model = shaken(made(text, in_shape=(1, 8, 8), classes=3)).float()
    path = tmp_path / "w.safetensors"
    save(model, path)
    back = file(str(path)).eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(back(x), model(x))
    assert copy.deepcopy(back)(x).shape == (2, 3)


def test_every_network_is_listed():
    small = {text.partition("(")[0] for text in SMALL.values()}
    assert small | {"file", "hf", "timm"} == set(names("model")), "add a line to SMALL"


@pytest.mark.parametrize("channels", [[0.3], 0, 2.0, None])
def test_normalize_takes_a_number_of_channels_first(channels):
    with pytest.raises(ModelError, match=r"channels=.*: expected a whole number"):
        Normalize(channels, [0.35])


def test_normalize_refuses_another_number_of_channels():
    layer = Normalize(3, 0.5, (0.1, 0.2, 0.5))
    x = torch.rand(2, 3, 4, 4)
    want = (x - 0.5) / torch.tensor([0.1, 0.2, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(layer(x), want)
    for given in (x[:, :1], x[:, :2]):
        with pytest.raises(
            ModelError, match=f"images of 3 channels, and these have {given.shape[1]}: expected"
        ):
            layer(given)
    with pytest.raises(ModelError, match=r"got shape \(2, 3\)"):
        layer(x[:, :, 0, 0])
    torch.testing.assert_close(torch.func.vmap(layer)(x), want)
    checking = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)  # it would take fx's stand-ins for wrong types
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    config.update("jaxtyping_disable", checking)
    torch.testing.assert_close(traced(x), want)
    with pytest.raises(ModelError, match="these have 1"):
        traced(x[:, :1])
