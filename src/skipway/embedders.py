"""Networks that make vectors of images, to be compared: pooling and a layer on a residual network.

Sources: GeM 1711.02512, section 3.2; what the directions of classes are for, 2003.13911 and
1801.07698.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.architecture import Architecture
from skipway.heads import EmbedderConfig
from skipway.resnet import ResNet


def generalised_mean(x: Tensor, p: float | Tensor) -> Tensor:
    """[B, D, H, W] to [B, D]: the p-th root of the mean of p-th powers over pixels (1711.02512,
    eq. 3), p at least 1, of values that are not negative; the plain mean of any for a p of 1.

    Powers are taken of the values over their largest: they cannot overflow, nor all become 0. With
    a tensor for p it has a gradient too, and all gradients are finite.
    """
    if not isinstance(p, Tensor) and p == 1:
        return x.mean((2, 3))
    largest = x.detach().amax((2, 3), keepdim=True)  # whatever it is, the mean is the same
    shares = x / largest.where(largest > 0, 1)
    powers = shares.pow(p).mean((2, 3))
    largest = largest[:, :, 0, 0]
    return powers.where(largest > 0, 1).pow(1 / p) * largest


class GeM(nn.Module):
    """`generalised_mean` of a stage, [B, D, H, W] to float32 [B, D], with one power that is learned
    and stays at 1 at least."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return generalised_mean(x.float(), self.p.clamp_min(1))
        with torch.no_grad():  # a clamp in the graph would have no gradient there, for good
            self.p.clamp_(min=1)
        return generalised_mean(x.float(), self.p)


class Average(nn.Module):
    """The mean over pixels, [B, D, H, W] to float32 [B, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


class EmbeddingNet(nn.Module):
    """A residual network that makes vectors; `build_embedder` makes one.

    Input: float [B, in_channels, H, W], normalised as the card says. Vectors are float32 [B, dim]
    of length 1, whatever the precision of the network below. In evaluation mode they are the
    output. In training mode it is a dictionary: `vectors`, and, where the loss has them,
    `directions`, float32 [num_classes, dim] of length 1, one for each class.
    """

    def __init__(self, body: ResNet, config: EmbedderConfig, num_classes: int) -> None:
        super().__init__()
        self.body, self.config = body, config
        self.pool: nn.Module = GeM(config.gem_p) if config.pooling == "gem" else Average()
        channels = [*body.channels.values()][-1]
        self.embedding = nn.Linear(channels, config.dim)
        self.directions: nn.Parameter | None = None
        if config.loss != "triplet":
            self.directions = nn.Parameter(torch.randn(num_classes, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        *_, last = self.body.features(x).values()
        with torch.autocast(x.device.type, enabled=False):  # 8 bits of a cosine are too few
            vectors = F.normalize(self.embedding(self.pool(last)))
            if not self.training:
                return vectors
            outputs = {"vectors": vectors}
            if self.directions is not None:
                outputs["directions"] = F.normalize(self.directions)
            return outputs


def build_embedder(arch: Architecture, config: EmbedderConfig, num_classes: int) -> EmbeddingNet:
    """The network of that configuration on that architecture, in training mode.

    num_classes: of the images that it is trained on; vectors do not depend on them. `net.body`
    takes weights and is frozen in parts like any `ResNet`, but has no classifier.
    """
    body = ResNet(arch)
    del body.fc
    return EmbeddingNet(body, config, num_classes)
