"""`skipway eval` of models that find objects, or the class of each pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from skipway.cli.shared import Remarks, bracketed, emit, points, within
from skipway.errors import InputError, harmless
from skipway.shares import percent

if TYPE_CHECKING:
    from skipway.bootstrap import ComparedFigures
    from skipway.card import Card
    from skipway.data import Split
    from skipway.data.split import Undivided
    from skipway.locator import Locator
    from skipway.pixel_predictor import PixelPredictor
    from skipway.tasks.detect import DetectionEvaluator
    from skipway.tasks.segment import SegmentationEvaluator

_Model = TypeVar("_Model", bound="Locator | PixelPredictor")

OBJECT_METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "ar": "AR",
    "ar_1": "AR, 1 detection an image",
    "ar_10": "AR, 10 detections an image",
    "ar_small": "AR of small objects",
    "ar_medium": "AR of medium objects",
    "ar_large": "AR of large objects",
}
PIXEL_METRICS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "weighted_iou": "IoU weighted by pixels",
    "boundary_f1": "boundary F1",
}
COLUMNS = {
    "iou": "IoU",
    "accuracy": "accuracy",
    "precision": "precision",
    "boundary_f1": "boundary F1",
    "share": "of pixels",
}


def evaluate_objects(
    model: str,
    data: str,
    split: str | None,
    on_bad: Literal["error", "skip"] | None,
    device: str,
    precision: str,
    threads: int,
    against: str | None,
    as_json: bool,
) -> None:
    """Score a detector on annotated images, and another one on the same. Raises InputError."""
    from skipway.accumulation import resamples_of
    from skipway.data.objects import AnnotatedSplit, undivided_objects
    from skipway.locator import load_locator, score_objects

    def loaded(name: str) -> Locator:
        return load_locator(name, threads, device, precision)

    remarks = Remarks()
    locator = loaded(model)
    rival = None if against is None else _rival(locator, against, loaded)
    policy: Literal["error", "skip"] = on_bad or locator.card.setting("data.on_bad", "error")

    def opened(scored: Locator, card: Card) -> Undivided[AnnotatedSplit]:
        return undivided_objects(
            data,
            card.setting("data.val", "auto"),
            card.setting("seed", 0),
            policy,
            masks=scored.card.task == "instance",
            classes=scored.classes,
        )

    def score(scored: Locator, images: Split) -> tuple[DetectionEvaluator, int]:
        assert isinstance(images, AnnotatedSplit)
        evaluator, skipped = score_objects(scored, images, threads, policy)
        remarks.skip(skipped)
        return evaluator, len(images) - len(skipped)

    own = opened(locator, locator.card)
    name, images = _scored(own, locator.card, data, split, remarks)
    theirs = images
    if rival is not None:
        _, theirs, _ = opened(rival, locator.card).take(name)
        if [*theirs.names] != [*images.names]:
            raise InputError(f"--against {harmless(against)}: its images are not those of MODEL")
        remarks.trained(model, _trained_on(own, locator.card, images))
        remarks.trained(str(against), _trained_on(opened(rival, rival.card), rival.card, theirs))
    evaluator, n = score(locator, images)
    if beyond := evaluator.out_of_reach().in_words():
        remarks.note(beyond)
    metrics, ends = evaluator.metrics(), evaluator.intervals
    rows: list[dict[str, Any]] = evaluator.per_class(locator.classes)
    found = None
    if rival is not None:
        places = [locator.classes.index(name) for name in rival.classes]
        found = evaluator.against(score(rival, theirs)[0].relabelled(places))
    if as_json:
        value = {"metrics": metrics, "intervals": ends, "resamples": resamples_of(n), "n": n}
        value |= {"split": name, "per_class": rows}
        value |= remarks.to_json()
        emit(value | ({} if found is None else {"against": _as_json(found, str(against))}))
        return
    print(f"{harmless(model)} on {harmless(data)}, {name}: {n:,} images")
    for key, figure in metrics.items():
        print(f"{object_metric(key)} {percent(figure)}{within(ends[key])}")
    for row in rows:
        print(
            f"  {row['label']}: AP {percent(row['ap'])}{within(row['ap_interval'])}  "
            f"AP50 {percent(row['ap50'])}  ({row['n']:,} objects)"
        )
    if found is not None:
        print("\n".join(_comparison(found, harmless(against), object_metric)))


def _rival(model: _Model, against: str, load: Callable[[str], _Model]) -> _Model:
    """The other model. Raises InputError before anything is scored."""
    try:
        other = load(against)
    except InputError as error:
        raise InputError(f"--against: {error}") from None
    if {*other.classes} != {*model.classes}:
        raise InputError(f"--against {harmless(against)}: its classes are not those of MODEL")
    return other


def object_metric(key: str) -> str:
    """A metric of a detector in words."""
    kind, _, name = key.partition("_")
    if kind in ("mask", "box"):
        return f"{kind} {OBJECT_METRICS[name]}"
    return OBJECT_METRICS[key]


def _as_json(found: ComparedFigures, against: str) -> dict[str, Any]:
    return {
        "model": against,
        "n": found.n,
        "metrics": found.second,
        "differences": found.differences,
        "intervals": found.intervals,
        "p": found.p,
        "clear": {name: found.clear(name) for name in found.first},
    }


def _comparison(found: ComparedFigures, name: str, in_words: Callable[[str], str]) -> Iterator[str]:
    """MODEL is A, the other B; differences are B minus A. in_words: of the key of a metric."""
    yield f"against B, {name}, on the same {found.n:,} images:"
    for key, difference in found.differences.items():
        spread = bracketed(found.intervals[key], points)
        yield (
            f"  {in_words(key)} {percent(found.second[key])}, B minus A {points(difference)} "
            f"points{spread}, p = {found.p[key]:.2g}"
        )
    key, difference = next(iter(found.differences.items()))
    by = f"{in_words(key)} differs by {100 * abs(difference):.2f} points"
    if found.clear(key):
        yield f"{'B' if difference > 0 else 'A'} is better: {by}, p = {found.p[key]:.2g}."
    else:
        yield f"Not told apart: {by}, p = {found.p[key]:.2g}."


def evaluate_pixels(
    model: str,
    data: str,
    split: str | None,
    views: str,
    on_bad: Literal["error", "skip"] | None,
    device: str,
    precision: str,
    threads: int,
    against: str | None,
    as_json: bool,
) -> None:
    """Score a semantic segmenter on images with masks, and another one on the same. Raises
    InputError."""
    from skipway.data.pixels import MaskedSplit, undivided_pixels
    from skipway.pixel_predictor import load_pixel_predictor, pixel_views, score_pixels

    asked = pixel_views(views)

    def loaded(name: str) -> PixelPredictor:
        return load_pixel_predictor(name, threads, device, precision)

    remarks = Remarks()
    predictor = loaded(model)
    rival = None if against is None else _rival(predictor, against, loaded)
    policy: Literal["error", "skip"] = on_bad or predictor.card.setting("data.on_bad", "error")

    def opened(card: Card) -> Undivided[MaskedSplit]:
        return undivided_pixels(
            data,
            card.setting("data.val", "auto"),
            card.setting("seed", 0),
            policy,
            classes=card.classes,
        )

    own = opened(predictor.card)
    name, images = _scored(own, predictor.card, data, split, remarks)
    assert isinstance(images, MaskedSplit)
    if rival is not None:
        remarks.trained(model, _trained_on(own, predictor.card, images))
        remarks.trained(str(against), _trained_on(opened(rival.card), rival.card, images))

    def score(scored: PixelPredictor) -> tuple[SegmentationEvaluator, int]:
        evaluator, skipped = score_pixels(scored, images, threads, policy, asked)
        remarks.skip(skipped)
        return evaluator, len(images) - len(skipped)

    evaluator, n = score(predictor)
    metrics = evaluator.metrics()
    ends = {key: evaluator.intervals[key] for key in metrics}
    rows = evaluator.per_class(predictor.classes)
    if not rows:
        raise InputError(f"{harmless(data)}: {name}: no pixel of its masks is judged")
    found = None
    if rival is not None:
        found = evaluator.against(score(rival.in_order(predictor.classes))[0])
    if as_json:
        value: dict[str, Any] = {"metrics": metrics, "intervals": ends, "n": n, "split": name}
        value |= {"views": asked.value, "size": predictor.card.preprocess.size, "per_class": rows}
        value |= remarks.to_json()
        emit(value | ({} if found is None else {"against": _as_json(found, str(against))}))
        return
    of = "" if asked == "one" else f", views: {asked}"
    print(f"{harmless(model)} on {harmless(data)}, {name}: {n:,} images{of}")
    for key, figure in metrics.items():
        print(f"{PIXEL_METRICS[key]} {percent(figure)}{within(ends[key])}")
    width = min(max(len(row["label"]) for row in rows), 24)
    print(f"  {'':<{width}}" + "".join(f"{title:>13}" for title in COLUMNS.values()))
    for row in rows:
        told = ("–" if row[key] is None else percent(row[key]) for key in COLUMNS)
        print(f"  {row['label']:<{width}.{width}}" + "".join(f"{value:>13}" for value in told))
    if found is not None:
        print("\n".join(_comparison(found, harmless(against), PIXEL_METRICS.__getitem__)))


def _scored(
    opened: Undivided[Any], card: Card, data: str, split: str | None, remarks: Remarks
) -> tuple[str, Split]:
    """The split that is scored, by default as `default_split`, else as `Undivided.take`; with
    remarks on what must be known of it."""
    from skipway.evaluation import default_split, drawn_anew

    said: list[str] = []
    digest, asked = card.provenance.get("data"), split
    held = None if digest is None else opened.held_out(str(digest))
    if split is None:
        split, said = default_split(card, data, held)
    name, images, notes = opened.take(split)
    if asked is not None and held is None:
        said = drawn_anew(card, data, name, images)
    remarks.note(*said, *notes)
    return name, images


def _trained_on(opened: Undivided[Any], card: Card, images: Split) -> int:
    """How many of the images are known to have trained the model of the card."""
    digest = card.provenance.get("data")
    made = None if digest is None else opened.trained(str(digest))
    return 0 if made is None else made.learned_from(images)
