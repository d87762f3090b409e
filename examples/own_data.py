"""Data of your own: two splits of uint8 images with labels, and the names of the classes; checked when it is made."""

import torch

from opnorm.data import Dataset, Split
from opnorm.models import cnn
from opnorm.training import TrainingSettings, train


def stripes(images: int = 400, size: int = 8, seed: int = 0) -> Dataset:
    """Noisy images with stripes, upright or lying."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        labels = torch.randint(2, (count,), generator=generator)
        upright = torch.arange(size).remainder(2).mul(120).expand(count, 1, size, size)
        noise = torch.randint(120, (count, 1, size, size), generator=generator)
        pictures = torch.where(labels.view(-1, 1, 1, 1) == 0, upright, upright.mT) + noise
        return Split(pictures.to(torch.uint8), labels)

    return Dataset("stripes", train=split(images), test=split(images // 4), classes=("upright", "lying"))


if __name__ == "__main__":  # not where a command imports it
    torch.manual_seed(0)
    data = stripes()
    model = cnn(in_shape=data.image_shape, classes=len(data.classes), width=4)
    train(model, data, TrainingSettings(epochs=10))
    right = model.eval()(data.test.images.float() / 255).argmax(1) == data.test.labels
    print(f"{len(data.test.labels)} test images, accuracy {right.double().mean():.1%}")
# on the command line, by its dotted name: opnorm train --data 'my_module.stripes(images=1000)'
