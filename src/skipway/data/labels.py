"""What labels data hold beside those of class folders, as far as names tell."""

from __future__ import annotations

from skipway.data.objects import form_of
from skipway.data.pixels import form_of_masks
from skipway.errors import InputError, harmless


def task_of_data(path: str) -> str:
    """detect for annotated images, segment for images with masks, else classify.

    Raises InputError where two files, or two folders, could be meant.
    """
    if form_of(path):
        return "detect"
    return "segment" if form_of_masks(path) else "classify"


def check_classes(path: str) -> None:
    """Raise InputError for data that look like those of another task than to classify."""
    found = task_of_data(path)
    if found == "classify":
        return
    what = "annotated images" if found == "detect" else "images and masks"
    flags = "--task detect, or --task instance" if found == "detect" else "--task segment"
    raise InputError(
        f"{harmless(path)}: these are {what}, it seems\n"
        f"Give {flags}; or --task classify, if folders are classes."
    )
