"""Image classifiers and encoders of transformers, from a config with random weights."""

import pytest
import torch
from torch import nn

from opnorm.models import file
from opnorm.norms import measure
from tests.interop.checks import check_attacked, check_jacobian, check_measured, check_trained

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _installed():
    """Imported where a test runs: at the top of the file, every process of the tests would wait for it."""
    pytest.importorskip("transformers", reason="the extra interop is optional")


def vit():
    import transformers

    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_labels=3, initializer_range=0.3, **SMALL
    )
    return transformers.ViTForImageClassification(config)


def convnext():
    import transformers

    config = transformers.ConvNextConfig(
        num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    return transformers.ConvNextForImageClassification(config)


class FromEmbeddings(nn.Module):
    """A text network as a function of its embeddings."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(inputs_embeds=x)


def text(kind, **more):
    import transformers

    config = transformers.BertConfig(vocab_size=11, initializer_range=0.3, **SMALL, **more)
    return FromEmbeddings(getattr(transformers, kind)(config))


@pytest.mark.parametrize("build", [vit, pytest.param(convnext, marks=pytest.mark.slow)])
def test_image_classifiers(build):
    torch.manual_seed(0)
    model, x = build().eval(), torch.rand(9, 1, 8, 8)
    check_measured(model, x)
    check_jacobian(model, x)
    check_attacked(model, x)
    check_trained(model, x)


def test_encoders_and_text_classifiers_through_their_embeddings():
    torch.manual_seed(0)
    x = torch.rand(6, 5, 16)
    encoder = text("BertModel").eval()
    assert set(encoder(x).keys()) == {"last_hidden_state", "pooler_output"}
    check_measured(encoder, x)
    check_jacobian(encoder, x)
    check_attacked(text("BertForSequenceClassification", num_labels=3).eval(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model, x = vit().eval().to(dtype), torch.rand(2, 1, 8, 8, dtype=dtype)
    check_measured(model, x)
    if dtype is torch.float64:
        check_jacobian(model, x)


def test_compiled():
    torch.manual_seed(0)
    model, x = vit().eval(), torch.rand(2, 1, 8, 8)
    tables = [measure(m, x[:1]) for m in (model, torch.compile(model, backend="eager"))]
    norms = [[n.upper for row in table.rows for n in row.norms.values()] for table in tables]
    assert norms[0] == norms[1] != []


def test_the_shards_that_transformers_writes(tmp_path):
    torch.manual_seed(0)
    model, x = convnext().eval(), torch.rand(2, 1, 8, 8)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(file(str(tmp_path), arch=convnext().eval())(x).logits, model(x).logits)
