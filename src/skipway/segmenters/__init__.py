"""Segmenters: heads on this package's residual networks that tell the class of each pixel.

Parameter names are torchvision's, so that the state dicts of its FCN and DeepLabV3 load as they
are.

Sources: FCN 1411.4038; U-Net 1505.04597; DeepLabV3 1706.05587; DeepLabV3+ 1802.02611.
"""

from skipway.segmenters.model import Segmenter, build_segmenter

__all__ = ["Segmenter", "build_segmenter"]
