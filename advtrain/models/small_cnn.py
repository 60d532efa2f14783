"""A small convolutional network for small images: the model of the quickstart."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two 3 × 3 convolutions and two linear layers, without normalisation.

    Takes images in [0, 1], shape (n, in_channels, image_size, image_size). Returns logits, shape (n, C).

    Args:
        num_classes: C.
        in_channels: of the images.
        image_size: height and width, even.
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the hidden layer.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, image_size: int = 8, width: int = 32, hidden: int = 128
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "hidden": hidden}
        for name, value in (sizes | {"image_size": image_size}).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"model.{name}: expected an integer of at least 1, got {value!r}; choose such a size")
        if image_size % 2:
            raise ValueError(f"model.image_size: expected an even integer, got {image_size}; pad or resize the images")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * width * (image_size // 2) ** 2, hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.conv2(self.act(self.conv1(x)))).flatten(1)
        return self.classifier(self.act(self.hidden(features)))
