"""`skipway eval`: it needs torch only where the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from skipway.cli.detecting import evaluate_objects, evaluate_pixels
from skipway.cli.probing import evaluate_features
from skipway.cli.retrieving import evaluate_vectors
from skipway.cli.shared import (
    Device,
    Json,
    Model,
    OnBad,
    Precision,
    Remarks,
    Threads,
    app,
    bracketed,
    emit,
    points,
    within,
)
from skipway.errors import InputError, harmless
from skipway.shares import percent

if TYPE_CHECKING:
    from skipway.evaluation import Labelled, Views
    from skipway.evaluation.comparing import Compared
    from skipway.evaluation.slices import Column, Sliced
    from skipway.metrics import Scored
    from skipway.predictor import Predictor

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the images that are answered, for which the selective accuracy is told."""
SHOWN_COVERAGES = (0.9, 0.8, 0.5)
SHOWN_SLICES = 40
IN_WORDS = {"accuracy": "accuracy", "top5": "top-5", "loss": "loss", "ece": "ECE"}


@dataclass
class Told:
    """An answer as it grows: JSON, and lines for people, which are printed as they come."""

    as_json: bool
    value: dict[str, Any] = field(default_factory=dict)

    def add(self, lines: Iterable[str], **value: Any) -> None:
        self.value |= value
        for line in () if self.as_json else lines:
            print(line, flush=True)


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for train.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test or all; by default what the run held out, else test, val, all."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL2", help="Score it on the same images and test whether they differ."
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit a temperature on images that are not scored and write MODEL with it.",
        ),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Of --calibrate: a new file; else calibrated.safetensors beside the weights.",
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.csv:COLUMN",
            help="Accuracy by each value of COLUMN in a CSV that has a column path.",
        ),
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions", help="Accuracy under five corruptions at five severities too."
        ),
    ] = False,
    views: Annotated[
        str,
        typer.Option(
            metavar="one|flip|shift|ten-crop|scales|slide",
            help="Views of an image that are averaged: it alone; its mirror image too; both moved "
            "by a pixel too; five crops, mirrored; the whole at five sizes. Of segmenters: one; "
            "flip; scales, the whole at six sizes, mirrored; slide, overlapping tiles at full "
            "resolution.",
        ),
    ] = "one",
    size: Annotated[
        int | None, typer.Option(min=8, help="Side of the input in pixels, if not the card's.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            metavar="knn|linear",
            help="Score the features instead: a k-NN or linear classifier learns from them on "
            "train, and is scored on test or val.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Of --probe: c2 to c5, or embedding; by default the last there is."),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of --probe knn: how many neighbours vote; by default chosen on train."
        ),
    ] = None,
    on_bad: Annotated[
        OnBad | None,
        typer.Option(help="error or skip: what to do with damaged images; by default as trained."),
    ] = None,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option(help="float32 or bf16.")] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on labelled or annotated images, with 95 % intervals.

    Classifiers: accuracy, top-5, loss, calibration, and accuracy where the least confident are left
    unanswered. Detectors: COCO's AP and AR. Segmenters: mIoU, boundary F1. Embedders: recall@k.
    --calibrate, --corruptions, --slices and --size are of classifiers, --views of segmenters too.
    """
    from skipway.evaluation import Views, open_labelled
    from skipway.loading import needing_torch
    from skipway.machine import cores
    from skipway.predictor import load, task_of

    _check(against, calibrate, out, views, size)
    threads = threads or cores()
    bad: Literal["error", "skip"] | None = None
    if on_bad is not None:
        bad = "skip" if on_bad is OnBad.skip else "error"
    if probe is not None:
        if against or calibrate or corruptions or slices is not None or size or views != "one":
            raise InputError(
                "--probe: scores features, not the model's answers; leave out --against, "
                "--calibrate, --corruptions, --slices, --size and --views"
            )
        evaluate_features(
            model, data, probe, split, stage, neighbours, bad, device, precision.value, threads,
            as_json,
        )  # fmt: skip
        return
    if stage is not None or neighbours is not None:
        raise InputError(f"{'--neighbours' if stage is None else '--stage'}: goes with --probe")
    task = task_of(model)
    if task == "segment":
        if calibrate or corruptions or slices is not None or size:
            raise InputError(
                f"{harmless(model)} tells the class of each pixel; --calibrate, --corruptions, "
                "--slices and --size are of classifiers"
            )
        with needing_torch(model):
            evaluate_pixels(
                model, data, split, views, bad, device, precision.value, threads, against, as_json
            )
        return
    if task == "embed":
        if against or calibrate or corruptions or slices is not None or size or views != "one":
            raise InputError(
                f"{harmless(model)} makes vectors; --calibrate, --corruptions, --slices, --size "
                "and --views are of classifiers, and --against does not compare vectors yet"
            )
        with needing_torch(model):
            evaluate_vectors(model, data, split, bad, device, precision.value, threads, as_json)
        return
    if task != "classify":
        if calibrate or corruptions or slices is not None or size or views != "one":
            raise InputError(
                f"{harmless(model)} finds objects; --calibrate, --corruptions, --slices, --size "
                "and --views are of classifiers"
            )
        with needing_torch(model):
            evaluate_objects(
                model, data, split, bad, device, precision.value, threads, against, as_json
            )
        return
    if views not in list(Views):
        raise InputError(f"--views {harmless(views)}: {', '.join(Views)}")
    column = _column(slices)

    def opened(name: str) -> Predictor:
        predictor = load(name, threads, device, precision.value)
        return predictor if size is None else predictor.at_size(size)

    predictor = opened(model)
    images = open_labelled(predictor, model, data, split)
    policy = on_bad.value if on_bad else predictor.card.setting("data.on_bad", "error")
    told = Told(as_json)
    scoring = Scoring(predictor, model, images, threads, policy, Views(views))
    rival = None if against is None else _rival(scoring, against, opened)
    if calibrate:
        scored = _calibrated(told, scoring, out)
    else:
        scored = scoring.scored()
        _metrics(told, scoring, scored)
    if rival is not None:
        _against(told, scored, rival)
    if column is not None:
        _sliced(told, scoring, scored, column)
    if corruptions:
        _corrupted(told, scoring, scored)
    if as_json:
        emit(told.value | scoring.remarks.to_json())


@dataclass
class Scoring:
    """A model, the images, and how it is shown them."""

    predictor: Predictor
    model: str
    images: Labelled
    threads: int
    on_bad: str
    views: Views
    remarks: Remarks = field(default_factory=Remarks)

    def scored(self) -> Scored:
        """The scores; with remarks on what must be known of them, and on what was skipped."""
        from skipway.evaluation import score

        self.remarks.note(*self.images.notes)
        found, skipped = score(
            self.predictor, self.images.split, self.threads, self.on_bad, self.views
        )
        self.remarks.skip(skipped)
        return found


def _check(
    against: str | None, calibrate: bool, out: str | None, views: str, size: int | None
) -> None:
    """Raise InputError for flags that do not go together."""
    if out is not None and not calibrate:
        raise InputError("--out: give it with --calibrate, whose file it names")
    if calibrate and (views != "one" or size is not None):
        raise InputError(
            "--calibrate: the card's temperature is that of one view at its own size; leave out "
            f"{'--size' if views == 'one' else '--views'}"
        )
    if calibrate and against is not None:
        raise InputError("--calibrate: leave out --against; compare the file that is written")


def _column(slices: str | None) -> Column | None:
    from skipway.evaluation.slices import Column

    return None if slices is None else Column(slices)


def _metrics(told: Told, scoring: Scoring, scored: Scored) -> None:
    from skipway.evaluation.comparing import intervals
    from skipway.metrics import selective_risk

    images, views, temperature = scoring.images, scoring.views, scoring.predictor.card.temperature
    metrics, ends, n = scored.metrics(), intervals(scored), len(scored.label)
    right = 1 - selective_risk(scored.confidence, scored.correct)
    kept = {c: float(right[max(round(c * n), 1) - 1]) for c in COVERAGES}
    aurc = float((1 - right).mean())
    further = told_metrics(scoring.predictor)[1:]

    def lines() -> Iterator[str]:
        of = "" if views == "one" else f", views: {views}"
        of += f", temperature {temperature:.3f}" if temperature != 1 else ""
        what = f"{harmless(scoring.model)} on {harmless(images.data)}, {images.name}"
        yield f"{what}: {n:,} images{of}"
        yield f"accuracy {percent(metrics['accuracy'])}{within(ends['accuracy'])}"
        yield "  ".join(
            f"{IN_WORDS[name]} {shown(name, metrics[name])}"
            + bracketed(ends[name], partial(shown, name))
            for name in further
        )
        few = ", ".join(f"{c:.0%}: {percent(kept[c])}" for c in SHOWN_COVERAGES)
        yield f"accuracy if it answers only the most confident {few}  (AURC {aurc:.4f})"

    told.add(
        lines(),
        metrics=metrics,
        intervals=ends,
        n=n,
        split=images.name,
        views=str(views),
        size=scoring.predictor.card.preprocess.size,
        temperature=temperature,
        selective={"aurc": aurc, "coverage": [*kept], "accuracy": [*kept.values()]},
    )


def told_metrics(predictor: Predictor) -> list[str]:
    """The metrics that are shown, accuracy first; of five classes any answer is among the top 5."""
    return [name for name in IN_WORDS if name != "top5" or len(predictor.classes) > 5]


def shown(name: str, value: float) -> str:
    return percent(value) if name in ("accuracy", "top5") else f"{value:.4f}"


def _calibrated(told: Told, scoring: Scoring, out: str | None) -> Scored:
    from skipway.evaluation import calibrating, trained_on

    predictor, remarks = scoring.predictor, scoring.remarks
    target = calibrating.place(scoring.model, predictor, out)
    scoring.images, fitted_on = calibrating.apart(predictor, scoring.model, scoring.images)
    remarks.note(*scoring.images.notes)
    known = trained_on(predictor.card, fitted_on)
    outcome = "of those it is too sure, and the temperature will be too low"
    if known is None:
        said = "the data has changed since training: if images that are fitted on trained the model"
        remarks.note(f"{said}, {outcome}")
    elif known:
        remarks.note(f"{known:,} of the images that are fitted on trained the model: {outcome}")
    found, skipped = calibrating.calibrate(
        predictor, scoring.images, fitted_on, scoring.threads, scoring.on_bad
    )
    remarks.skip(skipped)
    _metrics(told, scoring, found.before)
    calibrating.write(predictor, scoring.images, found, target)
    before, after = found.before.metrics(), found.after.metrics()
    lines = [
        f"temperature {found.temperature:.3f}, fitted on {found.n:,} images of {found.fitted_on}: "
        f"ECE {before['ece']:.4f} before, {after['ece']:.4f} after; "
        f"loss {before['loss']:.4f} before, {after['loss']:.4f} after",
        f"{harmless(target)} written",
    ]
    told.add(
        lines,
        calibration={
            "temperature": found.temperature,
            "fitted_on": found.fitted_on,
            "n": found.n,
            "before": {name: before[name] for name in ("loss", "ece")},
            "after": {name: after[name] for name in ("loss", "ece")},
            "file": str(target),
        },
    )
    return found.before


def _rival(scoring: Scoring, name: str, opened: Callable[[str], Predictor]) -> Scoring:
    """The other model on the same images. Raises InputError before anything is scored."""
    from skipway.evaluation import open_labelled, trained_on

    images, card = scoring.images, scoring.predictor.card
    try:
        other = opened(name)
        theirs = open_labelled(other, name, images.data, images.name, card)
    except InputError as error:
        raise InputError(f"--against: {error}") from None
    if [*theirs.split.names] != [*images.split.names]:
        raise InputError(f"--against {harmless(name)}: its images are not those of MODEL")
    scoring.remarks.trained(scoring.model, trained_on(card, images))
    scoring.remarks.trained(name, trained_on(other.card, images))
    theirs = replace(theirs, notes=tuple(n for n in theirs.notes if n not in images.notes))
    return replace(scoring, predictor=other, model=name, images=theirs)


def _against(told: Told, scored: Scored, rival: Scoring) -> None:
    from skipway.evaluation.comparing import compare

    found = compare(scored, rival.scored())
    accuracy = found.accuracy
    told.add(
        comparison_lines(found, harmless(rival.model), told_metrics(rival.predictor)),
        against={
            "model": rival.model,
            "n": accuracy.n,
            "metrics": found.second,
            "differences": found.differences,
            "intervals": found.intervals,
            "both": accuracy.both,
            "only_first": accuracy.only_first,
            "only_second": accuracy.only_second,
            "p": accuracy.p,
            "clear": found.clear,
        },
    )


def comparison_lines(found: Compared, name: str, told: list[str]) -> Iterator[str]:
    """MODEL is A, the other B; differences are B minus A. told: the metrics."""
    accuracy = found.accuracy
    metrics = "  ".join(f"{IN_WORDS[k]} {shown(k, found.second[k])}" for k in told)
    yield f"against B, {name}, on the same {accuracy.n:,} images: {metrics}"
    parts = []
    for key in told:
        value = found.differences[key]
        unit, form = "", signed
        if key in ("accuracy", "top5"):
            unit, form = " points", points
        parts.append(f"{IN_WORDS[key]} {form(value)}{unit}{bracketed(found.intervals[key], form)}")
    yield "B minus A: " + "  ".join(parts)
    yield verdict(found)


def signed(difference: float) -> str:
    return f"{difference:+.4f}"


def verdict(found: Compared) -> str:
    """Which of two models, A and B, is better, in one sentence."""
    accuracy = found.accuracy
    if not accuracy.only_first and not accuracy.only_second:
        return "A and B are right on the same images."
    better, sign = ("B", 1) if accuracy.difference >= 0 else ("A", -1)
    low, high = sorted(100 * sign * end for end in accuracy.interval)
    numbers = (
        f"(95 % interval {low:.2f} to {high:.2f}), {in_words(accuracy.p)}; only A is right on "
        f"{accuracy.only_first:,} images, only B on {accuracy.only_second:,}"
    )
    if accuracy.difference == 0:
        return f"Not told apart: as many right answers {numbers}."
    by = f"{better} is better by {100 * abs(accuracy.difference):.2f} points {numbers}"
    return f"{by}." if found.clear else f"Not told apart: {by}."


def in_words(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _sliced(told: Told, scoring: Scoring, scored: Scored, column: Column) -> None:
    from skipway.evaluation.slices import slices

    found = slices(scored, scoring.images, column)
    if found.left_out:
        scoring.remarks.note(f"{found.left_out:,} images have no line in {harmless(column.path)}")

    def lines() -> Iterator[str]:
        yield f"by {harmless(found.column)}, the fewest images first:"
        for s in found.slices[:SHOWN_SLICES]:
            low, high = s.interval
            flag = "  few images" if s.few else ""
            yield (
                f"  {harmless(s.value) or '(empty)':<24.24}{s.n:>8,}  {percent(s.accuracy):>8}  "
                f"({percent(low)} to {percent(high)}){flag}"
            )
        if (more := len(found.slices) - SHOWN_SLICES) > 0:
            yield f"  … {more:,} more; --json has all"
        yield _worst(found)

    told.add(
        lines(),
        slices={
            "file": str(column.path),
            "column": found.column,
            "left_out": found.left_out,
            "worst": found.worst.value,
            "values": [asdict(s) | {"few": s.few, "clear": s.clear} for s in found.slices],
        },
    )


def _worst(found: Sliced) -> str:
    worst = found.worst
    low, high = worst.interval
    what = (
        f"the worst is {harmless(worst.value) or '(empty)'}: {percent(worst.accuracy)} of "
        f"{worst.n:,} images (95 % interval {percent(low)} to {percent(high)})"
    )
    if worst.difference is None or worst.p is None:
        return f"{what}; there is no other"
    if worst.difference == 0:
        return f"no slice is worse than the others: {percent(worst.accuracy)}"
    below = f"{-100 * worst.difference:.1f} points below"
    chance = "chance alone hardly explains it" if worst.clear else "chance alone may do this"
    among = f" among {len(found.slices):,} slices" if len(found.slices) > 2 else ""
    return f"{what}, {below} the others; {chance} ({in_words(worst.p)}{among})"


def _corrupted(told: Told, scoring: Scoring, scored: Scored) -> None:
    import numpy as np

    from skipway.evaluation.corruptions import SEVERITIES, mean_accuracy, scores_when_corrupted

    def row(name: str, values: Sequence[float]) -> str:
        shares = [*values, float(np.mean(values))]
        return f"  {name:<16}" + "".join(f"{percent(share):>8}" for share in shares)

    severities = "".join(f"{severity:>8}" for severity in range(1, SEVERITIES + 1))
    told.add(["accuracy on corrupted images, by severity:", f"  {'':<16}{severities}    mean"])
    right, table = [], {}
    for name, found in scores_when_corrupted(
        scoring.predictor, scoring.images.split, scoring.threads, scoring.on_bad, scoring.views
    ):
        right.append([s.correct for s in found])
        table[name] = [float(correct.mean()) for correct in right[-1]]
        told.add([row(name, table[name])])
    mean, ends = mean_accuracy(np.array(right))
    above = mean - float(scored.correct.mean())
    side = "below" if above < 0 else "above"
    told.add(
        [
            row("mean", np.mean([*table.values()], axis=0).tolist()),
            f"mean accuracy {percent(mean)}{within(ends)}, {100 * abs(above):.1f} points {side} "
            "that of the images as they are",
        ],
        corruptions={"accuracy": table, "mean": mean, "interval": ends},
    )
