"""Where in an image a model sees what it says: Grad-CAM and occlusion, for models of every task.

Sources: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization" (1610.02391); Zeiler and Fergus 2014, "Visualizing and Understanding
Convolutional Networks" (1311.2901), section 4.2; those of other tasks in `objects`, `pixels` and
`vectors`.
"""

from skipway.explain.classes import Explainer, GradCam, Occlusion, Of, grad_cam, occlusion
from skipway.explain.explanation import Explanation
from skipway.explain.opening import Method, open_explainer
from skipway.explain.reporting import add_maps

__all__ = [
    "Explainer",
    "Explanation",
    "GradCam",
    "Method",
    "Occlusion",
    "Of",
    "add_maps",
    "grad_cam",
    "occlusion",
    "open_explainer",
]
