"""Detectors: torchvision's heads on this package's residual networks.

Parameter names are torchvision's, so that the state dicts of its Faster R-CNN, Mask R-CNN,
RetinaNet and FCOS load as they are. Its resizing and normalising is not used: images come as the
model's card says, and are padded only.

Sources: Faster R-CNN 1506.01497; He et al. 2015, 1512.03385, appendix A, "2015"; He et al. 2016,
1603.05027, "2016"; FPN 1612.03144; Mask R-CNN 1703.06870; RetinaNet 1708.02002; FCOS 1904.01355.
"""

from skipway.detectors.model import Detector, build_detector

__all__ = ["Detector", "build_detector"]
