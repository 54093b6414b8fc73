"""Segmenters, and the way to build them."""

from __future__ import annotations

from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.heads import SegmenterConfig
from skipway.norms import convert_norms
from skipway.resnet import ResNet, as_read
from skipway.segmenters.dilation import dilate
from skipway.segmenters.parts import STEM, auxiliary, head, resized


class Segmenter(nn.Module):
    """A residual network that tells the class of each pixel; `build_segmenter` makes one.

    Input: float [N, C, H, W], normalised as the card says, of any height and width that the network
    takes. Output: logits by name, float32 [N, num_classes, H, W]: "out", and in training "aux"
    where there is an auxiliary head.

    They are resized bilinearly from the stride of the head: 8 of FCN and DeepLabV3 (their output
    stride), 4 of DeepLabV3+, 2 of a U-Net, with an ImageNet stem.

    In training a batch of one image is fine as long as the network's last map has two pixels, which
    its batch norms need; the norm of DeepLab's image pooling then uses its running statistics.
    """

    def __init__(self, body: ResNet, config: SegmenterConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.backbone = body
        self.classifier = head(body, config, num_classes)
        self.aux_classifier = auxiliary(body, num_classes) if config.auxiliary else None

    @property
    def body(self) -> ResNet:
        """The residual network, without its classifier."""
        return self.backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        heads = {"out": self.classifier}
        if self.aux_classifier is not None and self.training:
            heads["aux"] = self.aux_classifier
        stem = self.body.stem(x)
        maps = {STEM: stem}
        reads = {name for one in heads.values() for name in one.reads}
        for name, y in self.body.after(stem).items():
            if name in reads:
                maps[name] = as_read(self.body, name, y)
        return {name: resized(one(maps).float(), x.shape) for name, one in heads.items()}


def build_segmenter(arch: Architecture, config: SegmenterConfig, num_classes: int) -> Segmenter:
    """The segmenter of that configuration on that architecture, in training mode.

    `segmenter.body` takes weights and is frozen in parts like any `ResNet`, but has no classifier;
    where its stages are dilated its strides are smaller, and its parameters are the same. Its norms
    are frozen where the configuration says so, which it must only where weights follow.

    Raises InputError where architecture and configuration do not fit.
    """
    body = ResNet(arch)
    del body.fc
    if config.head != "unet":
        dilate(body, config.output_stride)
    net = Segmenter(body, config, num_classes)
    convert_norms(body if config.norm == "frozen" else net, config.norm)
    return net
