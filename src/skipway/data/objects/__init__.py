"""Annotated images, for detection and instance segmentation: COCO json, Pascal VOC, YOLO. No torch.

`open_objects` gives a data set, `undivided_objects` one for models to be scored on, `problems` all
that is wrong in one.
"""

from skipway.data.objects.annotated import AnnotatedSplit, Objects, Table
from skipway.data.objects.checking import KINDS
from skipway.data.objects.opening import form_of, open_objects, problems, undivided_objects
from skipway.data.objects.shapes import Runs, Shape
from skipway.data.problems import Problem

__all__ = [
    "KINDS",
    "AnnotatedSplit",
    "Objects",
    "Problem",
    "Runs",
    "Shape",
    "Table",
    "form_of",
    "open_objects",
    "problems",
    "undivided_objects",
]
