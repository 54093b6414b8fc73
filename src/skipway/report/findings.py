"""What the numbers of a run mean, in sentences: each function looks for one thing.

The thresholds are meant to be quiet: what chance alone may do with so few images is not told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from skipway.metrics import calibration_by_chance, class_scores, wilson_interval
from skipway.report.markup import Html, marked_list, percent, plural, tag
from skipway.report.run import SPLITS, Run
from skipway.report.values import dig, mapping, number, objects

OVERFITTED = 0.05
"""By which more is right in training than may be in validation, where it overfits."""
FEW = 20
"""Images, of fewer of which it says nothing that all answers are one."""
LITTLE = 0.2
"""Of the way from guessing to no mistake at all; less of it is little learned."""
CALIBRATED = 0.03
"""Up to which calibration error a score can be read as a probability."""
Series = Sequence[tuple[float, float]]
"""(epoch, value) by rising epoch."""
MOST_IMAGES = 1e12
"""Past any data set; a count above it is no count."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two. `warn` asks for an action, `note` is worth knowing, `good` is well."""

    kind: Literal["warn", "note", "good"]
    text: str


def findings(run: Run) -> list[Finding]:
    """Everything that stands out, what asks for an action first."""
    parts = (
        leaks, _chance, _one_answer, _few_images, broken_loss, _unsteady, _overfitting, _rising,
        _unfinished, _imbalance, _weakest, _confidence, waiting,
    )  # fmt: skip
    return by_urgency(finding for part in parts for finding in part(run))


def by_urgency(found: Iterable[Finding]) -> list[Finding]:
    """What asks for an action first."""
    return sorted(found, key=lambda finding: ("warn", "note", "good").index(finding.kind))


def in_words(run: Run) -> Html | None:
    """The findings as a list; None where there is nothing to read them from."""
    if not run.epochs and run.metric("accuracy") is None:
        return None
    return as_list(findings(run))


def as_list(found: Sequence[Finding]) -> Html:
    """Findings behind the signs of their kinds; a sentence where there is none."""
    told = found or [Finding("good", "Nothing stands out in what was recorded.")]
    marks = {"warn": ("!", "Look at this: "), "note": ("i", "Note: "), "good": ("✓", "Good: ")}
    return marked_list(
        (
            marks[finding.kind][0],
            finding.kind,
            tag("p", tag("span", marks[finding.kind][1], class_="heard"), finding.text),
        )
        for finding in told
    )


def points(share: float) -> str:
    return f"{100 * share:.1f} points"


def leaks(run: Run, measure: str = "accuracy") -> Iterator[Finding]:
    """Images that two splits share: which numbers are too good for it."""
    for (first, second), n in run.leaks.items():
        one, other = SPLITS.get(first, first), SPLITS.get(second, second)
        said = f"{plural(n, f'{other} image is', f'{other} images are')} among the {one} images too"
        if first == "train" and run.split in ("", other):
            said += f", so the {measure} on {other} images is too good.{_without_leaked(run)}"
        elif first == "train":
            said += (
                f", so what was measured on {other} images by epoch is too good; the {run.split} "
                f"{measure} is not touched."
            )
        else:
            said += ", so what was chosen on the one looks too good on the other."
        yield Finding("warn", f"{said} skipway check-data lists them; keep each in one split.")


def _without_leaked(run: Run) -> str:
    """How low the accuracy on the other images may be: were all that leaked right."""
    accuracy, n = run.metric("accuracy"), run.scored
    if accuracy is None or n is None or n <= run.leaked:
        return ""
    least = max(accuracy * n - run.leaked, 0) / (n - run.leaked)
    return f" On the other {n - run.leaked:,} it may be as low as {percent(least)}."


def _learned(run: Run) -> float | None:
    """How much of the way from guessing to no mistake was made; None where it is not known."""
    accuracy, guessing = run.metric("accuracy"), run.guessing
    if accuracy is None or guessing is None or guessing >= 1:
        return None
    return (accuracy - guessing) / (1 - guessing)


def _chance(run: Run) -> Iterator[Finding]:
    accuracy, guessing, learned = run.metric("accuracy"), run.guessing, _learned(run)
    if run.interval is None or accuracy is None or guessing is None or learned is None:
        return
    low, high = run.interval
    said = (
        f"{percent(accuracy)} of the {run.split} images are right (95 % interval {percent(low)} to "
        f"{percent(high)}); always naming their commonest class gets {percent(guessing)}"
    )
    advice = "Train longer, start from --weights, or look whether labels and images fit together."
    if high < guessing:
        yield Finding("warn", f"It is worse than guessing: {said}. {advice}")
    elif low <= guessing:
        yield Finding("warn", f"It is not clearly better than guessing: {said}. {advice}")
    elif learned < LITTLE:
        above = points(accuracy - guessing)
        yield Finding("warn", f"It learned little: {said}, {above} less. {advice}")


def _one_answer(run: Run) -> Iterator[Finding]:
    if run.confusion is None or len(run.classes) < 2:
        return
    answers = run.confusion.sum(axis=0)
    most = int(answers.argmax())
    one = answers.sum() >= FEW and answers[most] >= 0.98 * answers.sum()
    if one and run.confusion[most].sum() < 0.9 * answers.sum():
        yield Finding("warn", f"Almost every answer is {run.classes[most]}, whatever is shown.")


def _few_images(run: Run) -> Iterator[Finding]:
    if run.interval is None or not run.scored:
        return
    low, high = run.interval
    if high - low > 2 * OVERFITTED:
        yield Finding(
            "note",
            f"Only {plural(run.scored, 'image was', 'images were')} scored: the accuracy on many "
            f"more may be anything from {percent(low, 0)} to {percent(high, 0)}.",
        )


def broken_loss(run: Run) -> Iterator[Finding]:
    """Epochs in which a term of the training loss was not finite."""
    broken = sum(
        any(key.startswith("train_loss") and number(row[key]) is None for key in row)
        for row in run.epochs
    )
    if broken:
        yield Finding(
            "warn",
            f"The training loss was not a finite number in {plural(broken, 'epoch', 'epochs')}. "
            "Try a lower --lr, --set optim.clip=1 or --precision float32.",
        )


def _unsteady(run: Run) -> Iterator[Finding]:
    return unsteady(run.series("train_loss"))


def unsteady(losses: Series) -> Iterator[Finding]:
    """A training loss, by epoch, that jumps up."""
    jumps = [
        (epoch, before, loss)
        for (_, before), (epoch, loss) in itertools.pairwise(losses)
        if loss > 1.3 * before and loss > before + 0.1
    ]
    if jumps:
        epoch, before, loss = max(jumps, key=lambda jump: jump[2] - jump[1])
        yield Finding(
            "warn",
            f"The training loss is unsteady: it jumped up {plural(len(jumps), 'time', 'times')}, "
            f"most at epoch {epoch:g} (from {before:.3g} to {loss:.3g}). A lower --lr, a longer "
            "schedule.warmup or --set optim.clip=1 steadies it.",
        )


def _val_images(run: Run) -> int | None:
    n = number(dig(run.splits, "val", "n"))
    return int(n) if n is not None and n >= 1 else None


def _overfitting(run: Run) -> Iterator[Finding]:
    train, val = run.series("train_accuracy"), run.series("val_accuracy")
    if not train or not val or run.mixed:  # the accuracy on mixtures cannot be held against it
        return
    fitted, held = train[-1][1], val[-1][1]
    n, low, top = _val_images(run), held, held
    if n:
        low, top = wilson_interval(min(max(round(held * n), 0), n), n)
    if fitted - top > OVERFITTED:
        yield Finding(
            "warn",
            f"It overfits: at the end {percent(fitted)} of the training images are right, but "
            f"{percent(held)} of the validation images, {points(fitted - held)} fewer. More "
            "images, stronger augmentation, more weight decay or pretrained --weights narrow this.",
        )
    elif not (len(val) > 2 and ("train", "val") not in run.leaks and _fits(run, fitted)):
        return
    elif top - low > 2 * OVERFITTED:  # what would be called overfitting could not be seen
        yield Finding(
            "note",
            "Whether it generalises, "
            f"{plural(n or 0, 'validation image is', 'validation images are')} too few to tell: "
            f"{percent(held)} are right at the end, {percent(fitted)} in training; of many more it "
            f"may be anything from {percent(low, 0)} to {percent(top, 0)}.",
        )
    elif not _may_be_guessing(run):
        yield Finding(
            "good",
            f"It generalises: {percent(fitted)} right in training (on augmented images), "
            f"{percent(held)} in validation at the end.",
        )


def _fits(run: Run, fitted: float) -> bool:
    """Whether enough was learned for the word "generalises"."""
    learned = _learned(run)
    return fitted > 0.5 and (learned is None or learned >= LITTLE)


def _may_be_guessing(run: Run) -> bool:
    """Whether the result is not clearly better than guessing, as far as that is known."""
    if run.interval is None or run.guessing is None:
        return False
    return run.interval[0] <= run.guessing


def _rising(run: Run) -> Iterator[Finding]:
    losses = run.series("val_loss")
    if len(losses) < 5:
        return
    at, lowest = min(losses, key=lambda point: point[1])
    last = losses[-1][1]
    if at <= 0.8 * losses[-1][0] and last > 1.15 * lowest and last > lowest + 0.02:
        yield Finding(
            "note",
            f"The validation loss was lowest at epoch {at:g} ({lowest:.3g}) and rose to "
            f"{last:.3g} since: later epochs made it surer of its mistakes.",
        )


def _unfinished(run: Run) -> Iterator[Finding]:
    return unfinished(run.series("val_accuracy"), "accuracy", _val_images(run))


def unfinished(series: Series, measure: str, n: int | None = None) -> Iterator[Finding]:
    """Still improving: the last tenth of the epochs against the tenth before, and better than any.
    n: images of which the measure is a share."""
    values = [value for _, value in series]
    tenth = max(len(values) // 10, 1)
    if len(values) < max(2 * tenth, 3):
        return
    last = float(np.mean(values[-tenth:]))
    before = [float(np.mean(values[i : i + tenth])) for i in range(len(values) - 2 * tenth + 1)]
    gain = last - before[-1]
    noise = math.sqrt(max(last * (1 - last), 0) / n) if n else 0
    if gain > max(0.01, noise) and last > max(before):
        when = f"{tenth} epochs" if tenth > 1 else "epoch"
        yield Finding(
            "warn",
            f"It was still improving when it ended: validation {measure} rose by {points(gain)} "
            f"in the last {when}. More --epochs would likely help.",
        )


def _imbalance(run: Run) -> Iterator[Finding]:
    counts = mapping(dig(run.splits, "train", "counts"))
    if run.confusion is None:
        return
    n = np.array([number(counts.get(name)) or 0 for name in _raw_classes(run)], np.float64)
    if len(n) < 2 or n.max() < 3 * max(n.min(), 1):
        return
    rare = n < n.max() / 2
    hits, truths = run.confusion.diagonal(), run.confusion.sum(axis=1)
    found = [(hits[part].sum(), truths[part].sum()) for part in (rare, ~rare)]
    if not all(of for _, of in found):
        return
    ends = [wilson_interval(int(h), int(of)) for h, of in found]
    few, many = (h / of for h, of in found)
    close = max(high for _, high in ends) - min(low for low, _ in ends) < 0.2
    ratio = (
        f"The largest class has {n.max() / max(n.min(), 1):.3g} times the images of the smallest"
    )
    shares = f"({percent(few)}, the others {percent(many)})"
    if many - few > 0.05 and ends[0][1] < ends[1][0]:
        rarest = [k for k in np.argsort(n, kind="stable") if rare[k]]
        named = ", ".join(run.classes[k] for k in rarest[:3])
        yield Finding(
            "warn",
            f"{ratio}, and the rare classes suffer: {percent(few)} of their images are found, "
            f"{percent(many)} of the others'. More images of the rarest would help most: {named}.",
        )
    elif few >= many:
        yield Finding("note", f"{ratio}; the rare classes are found as often {shares}.")
    elif close:
        yield Finding("note", f"{ratio}; the rare classes are found about as often {shares}.")
    else:
        yield Finding(
            "note",
            f"{ratio}; whether the rare classes suffer, too few images were scored to tell "
            f"{shares}.",
        )


def _raw_classes(run: Run) -> list[Any]:
    """The names as the files have them, in the order of `Run.classes`."""
    return [str(name) for name in run.evaluation["classes"]]


def clearly_below(hits: Sequence[int], n: Sequence[int], overall: float) -> list[int]:
    """The classes whose share of hits is 5 points or more below that of all, and not by chance:
    each with images is looked at, so their intervals hold for all together (Bonferroni)."""
    z = NormalDist().inv_cdf(1 - 0.025 / max(sum(of > 0 for of in n), 1))
    return [
        k
        for k, (right, of) in enumerate(zip(hits, n, strict=True))
        if of and wilson_interval(right, of, z)[1] <= overall - 0.05
    ]


def _weakest(run: Run) -> Iterator[Finding]:
    if run.confusion is None or len(run.classes) < 3:
        return
    scores, hits = class_scores(run.confusion), run.confusion.diagonal()
    if not scores.n.any():
        return
    overall = hits.sum() / run.confusion.sum()
    weak = clearly_below(hits.tolist(), scores.n.astype(int).tolist(), overall)
    if not weak:
        return
    k = min(weak, key=lambda k: float(scores.recall[k]))
    wrong = run.confusion[k].copy()
    wrong[k] = 0
    other, missed = int(wrong.argmax()), wrong.sum()
    yield Finding(
        "note",
        f"{run.classes[k]} is clearly found less often than others: "
        f"{percent(float(scores.recall[k]))} of its images ({percent(float(overall))} over all "
        f"classes). {wrong[other]:.0f} of the {missed:.0f} that are missed are taken for "
        f"{run.classes[other]}.",
    )


def _confidence(run: Run) -> Iterator[Finding]:
    rows = [
        [number(row.get(key)) for key in ("n", "confidence", "accuracy")]
        for row in objects(run.evaluation.get("calibration"))
    ]
    bins = np.array([row for row in rows if None not in row], np.float64).reshape(-1, 3)
    n = bins[:, 0].sum()
    if not 1 <= n <= MOST_IMAGES or (bins < 0).any() or (bins[:, 1:] > 1).any():
        return
    sure, right = (float((bins[:, 0] * bins[:, column]).sum() / n) for column in (1, 2))
    error = float((bins[:, 0] * abs(bins[:, 1] - bins[:, 2])).sum() / n)
    by_chance, deviation = calibration_by_chance(bins[:, 1], bins[:, 0])
    low, high = wilson_interval(round(right * n), int(n))
    images = plural(int(n), "image", "images")
    on = f"{percent(sure)} sure on average, right in {percent(right)} of {images}"
    one_sided = error > CALIBRATED and abs(sure - right) > error / 2
    if one_sided and sure > high:
        yield Finding(
            "warn",
            f"It is too confident by about {points(sure - right)}: {on}. Do not read its scores "
            "as probabilities; label_smoothing and fewer epochs lower them.",
        )
    elif one_sided and sure < low:
        yield Finding(
            "note",
            f"It is too modest by about {points(right - sure)}: {on}. A score understates how "
            "certain an answer is; label smoothing does this.",
        )
    elif not one_sided and error > max(CALIBRATED, by_chance + 2 * deviation):
        yield Finding(
            "warn",
            f"Its confidence is off by about {points(error)}, too high for some answers and too "
            f"low for others: {on}. Do not read its scores as probabilities.",
        )
    elif error > CALIBRATED or high - low > 2 * CALIBRATED:
        yield Finding(
            "note",
            f"Whether its confidence can be read as it is, {images} cannot tell: the calibration "
            f"error is {percent(error)}, and chance alone would make about {percent(by_chance)}.",
        )
    elif not run.leaked:
        yield Finding(
            "good",
            f"Its confidence can be read as it is: {on}; calibration error {percent(error)}.",
        )


def waiting(run: Run) -> Iterator[Finding]:
    """A network that waited for its images."""
    shares = [value for _, value in run.series("waiting")]
    if not shares or run.on_features:
        return
    share = float(np.mean(shares))
    if share > 0.2:
        workers = dig(run.record, "config", "data", "workers")
        had = f" (it had {workers:g})" if number(workers) is not None else ""
        yield Finding(
            "warn",
            f"The network waited for images {percent(share, 0)} of the training time. More "
            f"--workers{had}, smaller files, or images held in memory (--set data.resident=true) "
            "would make it faster.",
        )
