"""torchvision's detectors beside ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from skipway.detectors import Detector


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, height, width, generator=generator) for height, width in sizes]


AS_THEY_COME = {
    "min_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True
}  # fmt: skip
"""What makes torchvision's transform leave images whose short side is 64 px as they are."""


def randomise(model: nn.Module) -> None:
    """Statistics, weights of norms and of the last layers as after a training."""
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            tensors = module.state_dict()
            low, high = (0.1, 0.3) if name.endswith("bn3") else (0.5, 1.0)
            tensors["running_mean"].normal_(0, 0.1, generator=generator)
            tensors["running_var"].uniform_(0.5, 1.5, generator=generator)
            tensors["weight"].uniform_(low, high, generator=generator)
            tensors["bias"].normal_(0, 0.1, generator=generator)
    last = ("cls_logits", "bbox_reg", "bbox_pred", "bbox_ctrness", "cls_score", "mask_fcn_logits")
    for name, parameter in model.named_parameters():
        if any(part in name for part in last):
            # without a bias of its own, no class comes before the others
            spread = 0.0 if name.endswith("cls_logits.bias") else 0.05
            nn.init.normal_(parameter, 0, spread, generator=generator)


def same_detections(
    own: Detector, other: nn.Module, images: list[Tensor], shift: int, bound: float
) -> None:
    """Detections of both, on images whose short side is 64 px."""
    with torch.no_grad():
        found, expected = own.eval()(images), other.eval()(images)
    for image, one, two in zip(images, found, expected, strict=True):
        assert len(one["boxes"]) == len(two["boxes"]) > 5
        assert len(one["labels"].unique()) > 1
        assert torch.equal(one["labels"] + shift, two["labels"])
        assert (one["boxes"] - two["boxes"]).abs().max() <= bound
        assert (one["scores"] - two["scores"]).abs().max() <= bound
        assert ("masks" in one) == ("masks" in two)
        if "masks" in one:
            size = tuple(image.shape[1:])
            pasted = paste_masks_in_image(one["masks"][:, None], one["boxes"], size)
            assert (pasted - two["masks"]).abs().max() <= bound
