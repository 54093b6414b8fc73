"""Maps beside the pictures of a report, for the model that was just trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skipway import heatmap
from skipway.card import Card
from skipway.errors import harmless
from skipway.explain.classes import mistake_maps
from skipway.explain.explanation import Explanation

if TYPE_CHECKING:
    from torch import nn

    from skipway.data import Split

SIDE = 320
"""Pixels of the longer side of a map beside truth and what was found."""


def add_maps(shown: dict[str, Any], net: nn.Module, card: Card, split: Split) -> None:
    """Give the pictures of an evaluation, `shown` of `Evaluator.details`, a map of what spoke for
    an answer, by Grad-CAM on the last stage.

    net: in evaluation mode. Each row gets ``heat``, a picture for the report: a classifier's
    mistakes of the class that was predicted, and the images of a detector of the surest object
    there, of a segmenter of the class with the most pixels, with ``heat_of``, what that is. Rows
    count the images of the split by their ``index``. Other tasks get none.
    """
    if card.task == "classify":
        from skipway.resnet import backbone_of

        mistake_maps(shown["mistakes"], backbone_of(net), card.preprocess, split, card.classes)
        return
    whole: Any = net
    explained: Callable[[Any], Explanation | None]
    if card.task in ("detect", "instance"):
        from skipway.explain.objects import ObjectCam, ObjectExplainer

        objects = ObjectExplainer(whole, card, "", ObjectCam(whole, None))

        def surest(image: Any) -> Explanation | None:
            return next(iter(objects(image, number=1)), None)

        explained = surest
    elif card.task == "segment":
        from skipway.explain.pixels import PixelCam, PixelExplainer

        explained = PixelExplainer(whole, card, "", PixelCam(whole, None))
    else:
        return
    for row in shown["pictures"]:
        found = explained(split.image(row["index"], card.preprocess.channels))
        if found is not None:
            over = found.image, found.heat, found.geometry
            row["heat"] = heatmap.thumbnail(*over, SIDE, found.mark)
            row["heat_of"] = f"{harmless(found.asked.label)} {found.asked.score:.0%}"
