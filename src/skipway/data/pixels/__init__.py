"""Images with a class for each pixel, for semantic segmentation: folders of masks. No torch.

`open_pixels` gives a data set, `undivided_pixels` one for models to be scored on, `mask_problems`
all that is wrong in one.
"""

from skipway.data.pixels.checking import KINDS
from skipway.data.pixels.masked import MaskedSplit
from skipway.data.pixels.opening import (
    colours,
    form_of_masks,
    mask_problems,
    open_pixels,
    undivided_pixels,
)
from skipway.data.problems import Problem

__all__ = [
    "KINDS",
    "MaskedSplit",
    "Problem",
    "colours",
    "form_of_masks",
    "mask_problems",
    "open_pixels",
    "undivided_pixels",
]
