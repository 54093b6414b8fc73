"""The resolved configuration of a run: frozen, typed, every key explained, validated once."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from skipway.errors import InputError, harmless, nearest, plain_words
from skipway.heads import DetectorConfig, EmbedderConfig, SegmenterConfig

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)")
_MINUTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:m|min|minutes?)")


def split_duration(text: str) -> tuple[float, Literal["epoch", "step", "%"]]:
    """`5 epochs`, `400 steps` or `10 %` (of the run) as number and unit. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration; write 5 epochs, 400 steps or 10 %")
    unit: Literal["epoch", "step", "%"] = "%"
    if match[2] != "%":
        unit = "epoch" if match[2].startswith("epoch") else "step"
    return float(match[1]), unit


def _checked(value: object) -> str:
    text = str(value)  # a number without a unit is told the units too
    split_duration(text)
    return text


def _positive(text: str) -> str:
    if split_duration(text)[0] <= 0:
        raise ValueError(f"{text!r} is no length; a run needs one step at least")
    return text


def _in_the_run(text: str) -> str:
    number, unit = split_duration(text)
    if unit == "%" and number > 100:
        raise ValueError("longer than the run; give 100 % at most")
    return text


def minutes_of(interval: str) -> float | None:
    """The minutes of an interval that is a time (`5 minutes`, `5m`), else None."""
    match = _MINUTES.fullmatch(interval.strip())
    return float(match[1]) if match else None


def _interval(value: object) -> str:
    text = str(value).strip()
    if text.isdecimal():
        text += " steps"
    match = _MINUTES.fullmatch(text)
    if match is None:
        try:
            above = split_duration(text)[0] > 0
        except ValueError:
            raise ValueError("write 5m (minutes), 200 (steps) or 1 epoch") from None
        if not above:
            raise ValueError("write a number above 0")
        return text
    number = match[1]
    if not float(number):
        raise ValueError("write a time above 0")
    return f"{number} minutes"


Task = Literal["classify", "detect", "instance", "segment", "embed"]
Duration = Annotated[
    str, BeforeValidator(_checked), Field(examples=["5 epochs", "400 steps", "10 %"])
]
Length = Annotated[Duration, AfterValidator(_positive)]
Interval = Annotated[
    str, BeforeValidator(_interval), Field(examples=["5 minutes", "200 steps", "1 epoch"])
]


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Lengths = Annotated[tuple[Length, ...], BeforeValidator(_several)]


def _told(words: str) -> WrapValidator:
    """Whatever is wrong with a value, its key is told what to give in these words."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(words) from None

    return WrapValidator(check)


def _as_here(kind: object) -> object:
    if isinstance(kind, str) and re.sub(r"\W|_", "", kind.lower()) in ("multistep", "multisteplr"):
        raise ValueError("its name here is step, with several schedule.milestones")
    return kind


def _two(value: object) -> object:
    several = value if isinstance(value, (list, tuple)) else (value,)
    if len(several) == 2:
        return value
    alone = several[0] if len(several) == 1 else None
    least = f"{alone:g}" if isinstance(alone, float) and 0 < alone < 1 else "0.5"
    raise ValueError(f"write the smallest and the largest, as [{least},1]")


def _rising(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError("give the smallest and the largest share, both above 0 and at most 1")
    return area


def _scales(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0.05 <= scale[0] <= scale[1] <= 20:
        raise ValueError("give the smallest and the largest factor, from 0.05 to 20")
    return scale


class Slice(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


Share = Annotated[float, Field(ge=0, lt=1)]
Area = Annotated[tuple[float, float], BeforeValidator(_two), AfterValidator(_rising)]
Scales = Annotated[tuple[float, float], BeforeValidator(_two), AfterValidator(_scales)]
Betas = Annotated[tuple[Share, Share], _told("give two numbers, from 0 to below 1, as [0.9,0.999]")]
Frozen = Annotated[Literal["all"] | Annotated[int, Field(ge=0, le=6)], _told("give 1 to 6, or all")]
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", examples=["auto", "cpu", "cuda", "cuda:1"]),
    _told("give cpu, cuda or cuda:N"),
]


class ModelConfig(Slice):
    name: str = "auto"
    """A row of `skipway models`; auto chooses from the size of the images."""
    weights: str | None = None
    """A weight file to start from."""
    freeze: Frozen = 0
    """Freeze the stem (1), the stem and the first stage (2), and so on, or all but the classifier;
    only with weights."""
    unfreeze: Lengths = ()
    """When frozen parts begin to train: after the first of these durations the last part, after the
    second the one before it, and with the last duration all that is left. So one duration frees
    all at once, and several are gradual unfreezing (1801.06146, section 3.3)."""
    architecture: dict[str, JsonValue] = {}
    """Fields of the architecture to replace, e.g. shortcut or width."""


class DataConfig(Slice):
    val: float | Literal["auto", "none"] = "auto"
    """Share of the training images held out where the data has no validation split."""
    take: int | None = Field(None, ge=1)
    """Learn from about so many of the training images, drawn by seed, of each class its share: to
    see what more of them would bring. The other splits stay whole."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be decoded."""
    size: int | None = Field(None, ge=8, le=4096)
    """Height and width of the model's input in pixels; chosen from the images when None."""
    channels: Literal[1, 3, 4] = 3
    """Of the model's input: grey, RGB, or RGB with alpha."""
    resize: Literal["crop", "letterbox", "squash", "fit"] = "crop"
    """As in the card's preprocessing; fit is that of detection and segmentation."""
    crop_ratio: float | None = Field(None, gt=0, le=1)
    """Of resize=crop, in evaluation and use: the input's side over the resized image's short side,
    of which the centre is taken. None is 224 / 256, or 1 for images of at most 64 px."""
    resident: bool | None = None
    """Hold the decoded set in memory and augment whole batches; chosen from its size when None."""
    views: int = Field(8, ge=0, le=1000)
    """Where all but the classifier is frozen: augmented views of each training image whose
    features are computed once and trained on in turn; 0 computes them anew in each epoch."""
    preflight: bool = True
    """Read every image once before training to find damaged ones."""
    workers: int | None = Field(None, ge=0, le=1024)
    """Processes that decode, where the set is not resident."""


class AugmentConfig(Slice):
    flip: bool | Literal["alternate"] = False
    """Mirror left and right with probability 1/2; alternate: in every other epoch, which of them by
    chance (2404.00498, section 3.6)."""
    flip_up: bool = False
    """Of detection and segmentation: mirror up and down too with probability 1/2."""
    scale: Scales = (1.0, 1.0)
    """Of detection and segmentation: the image is so much smaller or larger than the input,
    log-uniform, and cropped at random to its size in use where it is larger. (0.1, 2) are the
    scales of large-scale jitter (2012.07177, section 3)."""
    pad_crop: int = Field(0, ge=0)
    """Pad by so many pixels (zero after normalisation) and crop at random (2015, section 4.2)."""
    area: Area | None = None
    """Random resized crop: share of the image's area, aspect ratio 3/4 to 4/3 (1409.4842)."""
    size: int | None = Field(None, ge=8, le=4096)
    """Height and width of the random crops, where they are not those of the model's input. A
    little smaller costs less, and shows objects at the size of evaluation: FixRes (1906.06423) is
    an augment.size below data.size, at which the model is evaluated and used."""
    repeats: int = Field(1, ge=1, le=64)
    """Copies of an image in an epoch, each augmented anew (1901.09335, 1902.05509). The epoch is as
    long as with one: of 3, a third of the images is in it."""
    policy: Literal["none", "rand", "trivial"] = "none"
    """rand: so many random `operations`, each of one `magnitude` (1909.13719). trivial: one
    operation of random magnitude (2103.10158)."""
    operations: int = Field(2, ge=1, le=20)
    """Of rand: how many are applied to an image, one after another."""
    magnitude: float = Field(9, ge=0, le=30)
    """Of rand; timm's, which go to 10, times 3."""
    magnitude_std: float = Field(0, ge=0, le=30)
    """Of rand: deviation of the magnitude, drawn anew for each operation (timm's mstd, times 3)."""
    operation_probability: float = Field(1, gt=0, le=1)
    """Of rand: with which each operation is applied; in timm 0.5."""
    jitter: float = Field(0, ge=0, lt=1)
    """Brightness, contrast and saturation each times 1 - jitter to 1 + jitter."""
    erase: float = Field(0, ge=0, le=1)
    """Probability that a random rectangle is set to the mean (1708.04896, torchvision's ranges)."""
    mixup: float = Field(0, ge=0, le=100)
    """Alpha of Beta(alpha, alpha), the share of an image in its mixture with another
    (1710.09412); 0 is none."""
    cutmix: float = Field(0, ge=0, le=100)
    """Alpha, where a rectangle of another image is pasted (1905.04899); of both, one for each
    batch with probability 1/2."""
    pixel_mean: bool = False
    """Subtract the per-pixel mean of the training images, divide by nothing (2015)."""


class OptimConfig(Slice):
    kind: Literal["sgd", "adamw", "lamb", "muon"] = "sgd"
    """adamw: 1711.05101. lamb: Adam with a rate for each layer, for large batches (1904.00962).
    muon: fewer epochs to the same loss, at more work a step (Jordan et al. 2024), SGD with
    Nesterov's momentum for what is no convolution of a stage."""
    lr: float = Field(0.1, gt=0)
    """The highest learning rate; with muon, of what SGD updates."""
    muon_lr: float = Field(0.03, gt=0)
    """The highest learning rate of the convolutions that Muon updates."""
    muon_norm: bool = False
    """Keep each convolution that Muon updates at the norm it began with, in place of decay: batch
    norm makes nothing of it but the rate, which then is what the schedule says."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd and muon."""
    nesterov: bool = False
    """Of sgd."""
    betas: Betas = (0.9, 0.999)
    """Of adamw and lamb: how long the averages of the gradient and of its square last."""
    eps: float = Field(1e-6, gt=0)
    """Of adamw and lamb: added to the root of the average square."""
    weight_decay: float = Field(1e-4, ge=0)
    """Of sgd part of the gradient (L2); of adamw, lamb and what Muon updates apart from it
    (1711.05101)."""
    decay_all: bool = True
    """Decay batch norm's gamma and beta and all biases too."""
    head_lr: float = Field(1.0, gt=0)
    """The learning rate of the classifier, or of what makes vectors, over that of the rest."""
    stage_decay: float = Field(1.0, gt=0, le=1)
    """The learning rate of each stage over that of the next (discriminative rates, 1801.06146)."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the whole gradient."""


class ScheduleConfig(Slice):
    kind: Annotated[
        Literal["constant", "step", "plateau", "linear", "polynomial", "cosine", "one-cycle"],
        BeforeValidator(_as_here),
    ] = "cosine"
    """step: times `factor` at each milestone, of which there may be many (multi-step, MultiStepLR).
    plateau: times `factor` each time the first validation metric has not been better for more than
    `plateau_patience` epochs (ReduceLROnPlateau); those of the warm-up and of frozen parts that
    will train do not count. linear, cosine: to 0. polynomial: to 0 as the `power` of what is left.
    one-cycle: cosine up during the warm-up, cosine down to 0."""
    length: Length = "40 epochs"
    """Of the whole training; the schedule spans it."""
    minutes: float | None = Field(None, gt=0)
    """Plan the length so that the whole run ends within so many minutes on this machine; warm-up
    and milestones keep their shares of the run."""
    warmup: Annotated[Duration, AfterValidator(_in_the_run)] = "0 steps"
    """How long the rate rises, or is `warmup_lr`, at the beginning (1706.02677, section 2.2)."""
    warmup_lr: float | None = Field(None, gt=0)
    """Constant rate during warm-up (2015: 0.01 for deep nets); None rises linearly from near 0."""
    milestones: tuple[Duration, ...] = ()
    """Of step: when the rate falls."""
    factor: float = Field(0.1, gt=0)
    """Of step and plateau."""
    power: float = Field(2.0, gt=0)
    """Of polynomial."""
    plateau_patience: int = Field(10, ge=0)
    """Of plateau: epochs without a better metric that are borne at one rate."""
    threshold: float = Field(1e-4, ge=0, lt=1)
    """Of plateau: share of the best metric by which another must be above it to be better."""
    stop_patience: int | None = Field(None, ge=1)
    """Stop after so many epochs in a row whose first validation metric is not above the best; those
    of the warm-up and of frozen parts that will train do not count. A schedule that falls to 0 at
    the end of the run (linear, polynomial, cosine, one-cycle) then does not get there."""


class EmaConfig(Slice):
    decay: float = Field(0.0, ge=0, lt=1)
    """Of the averaged weights that are evaluated and kept, per step; 0 is none. It warms up:
    after t steps at most (1 + t) / (10 + t)."""


class DistillConfig(Slice):
    model: str | None = None
    """A teacher (1503.02531): a run, or a weight file with a card, with the same classes in any
    order."""
    weight: float = Field(0.5, gt=0, le=1)
    """Share of the loss that is against the teacher's scores; the rest is against the labels."""
    temperature: float = Field(4.0, gt=0)
    """Divides both networks' outputs, which softens their scores."""


class RunConfig(Slice):
    """Everything that decides a run."""

    data_path: str
    recipe: str
    """A name of `skipway recipes`: what all settings are before others are given."""
    task: Task = "classify"
    """classify: one label an image. detect: boxes of objects. instance: boxes and masks. segment:
    the class of each pixel. embed: a vector, close to those of images of the same class."""
    model: ModelConfig = ModelConfig()
    detector: DetectorConfig = DetectorConfig()
    """Of detect and instance."""
    segmenter: SegmenterConfig = SegmenterConfig()
    """Of segment."""
    embedder: EmbedderConfig = EmbedderConfig()
    """Of embed."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    distill: DistillConfig = DistillConfig()
    batch_size: int = Field(128, ge=1)
    """Images a step; under torchrun those of each process."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a step goes through a batch, for one that would not fit into memory: at most
    batch_size / accumulate images at once, rounded up, of a shorter or longer batch too, and one
    more where a single image would be left. Batch norm sees one part at a time."""
    loss: Literal["ce", "bce", "focal", "ce+dice"] = "ce"
    """ce: cross-entropy. bce: a logistic loss for each class, the mean of them (2110.00476).
    focal: cross-entropy times (1 - p)^focal_gamma (1708.02002). ce+dice: of segmentation, with the
    soft Dice coefficient (1606.04797)."""
    focal_gamma: float = Field(2.0, ge=0)
    """Of focal: how little what is right already counts; 0 is cross-entropy."""
    bce_threshold: float | None = Field(None, ge=0, lt=1)
    """Of bce: a mixed image is fully of each class whose share, smoothed, is above it (2110.00476);
    None takes the shares as they are."""
    class_weights: Literal["none", "root", "balanced"] = "none"
    """balanced: the loss of a class in inverse proportion to its training images, or pixels. root:
    to their square root, where balanced would have a few of them decide."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over all classes (1512.00567, section 7)."""
    exact_norm: bool = False
    """After training, compute batch norm's statistics over training images (2015 code)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Decides every draw: first weights, order, augmentation, and what is held out."""
    device: Device = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of training; evaluation is in float32."""
    compile: bool = False
    """Compile the network (torch.compile), in one process: minutes at the start, then faster steps,
    for long runs; needs a C++ compiler on the CPU."""
    threads: int = Field(1, ge=1, le=1024)
    """Of computation; where it is not set, those of the machine."""
    checkpoint_every: Interval = "1 epoch"
    """How often all that a resume needs is written."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest stay, beside the best weights."""

    @property
    def on_features(self) -> bool:
        """Whether the classifier alone is trained, on features that are computed once."""
        return self.model.freeze == "all" and self.data.views > 0


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys that `--set` knows."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


_ELSEWHERE = {"optimizer": "optim.kind", "scheduler": "schedule.kind"}
"""What other toolkits call a setting, where its name here is not near."""
_ARCHITECTURE, _DATA = "model.architecture.", "data_path"


def _check_key(key: str) -> None:
    known = list(keys())
    if key not in known and not key.startswith(_ARCHITECTURE):
        settable = [k for k in known if k != _DATA]
        raise InputError(f"--set: unknown key {harmless(key)!r}.{meant(key, settable)}")


def meant(key: str, known: list[str]) -> str:
    """The key that was perhaps meant by an unknown one, else those of its group."""
    if key in FLAGS or key in _ELSEWHERE:
        return f" Did you mean {(FLAGS | _ELSEWHERE)[key]!r}?"
    group = key if any(k.startswith(f"{key}.") for k in known) else key.rpartition(".")[0]
    start = f"{group}." if group else ""
    own = [k for k in known if k.startswith(start)]
    if start and own:  # what groups are called would make all of their keys near
        name = key.removeprefix(start)
        names = [k.removeprefix(start) for k in own]
        near = nearest(name, names, start) if name != group else ""
        return near or f" Keys of {group}: {', '.join(names)}."
    ends = [k for k in known if k.rpartition(".")[2] == key]
    if ends:
        return f" Did you mean {' or '.join(map(repr, ends))}?"
    groups = dict.fromkeys(k if "." not in k else k.partition(".")[0] + ".…" for k in known)
    return nearest(key, known) or f" Keys: {', '.join(groups)}."


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` as dotted key and value. Raises InputError, offering the nearest key."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise InputError(f"--set {harmless(text)}: write key=value, e.g. --set optim.lr=0.05")
    _check_key(key)
    if key == _DATA:
        raise InputError("--set data_path: the data is what DATA names, and cannot be set")
    try:
        return key, json.loads(value)
    except ValueError:
        is_none = value.strip().lower() == "none" and not _is_choice(key, "none")
        return key, None if is_none else value


def _is_choice(key: str, value: str) -> bool:
    """Whether a name is a value of that key in its own right."""
    if key == "data.val" or key.startswith(_ARCHITECTURE):
        return True
    kind: Any = RunConfig
    for part in key.split("."):
        kind = kind.model_fields[part].annotation
    return value in get_args(kind)


def plain(value: Any) -> Any:
    """A value with NumPy's numbers, as loops over seeds and rates draw them, as Python's own."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Several ``key=value``, see `parse_setting`. Raises InputError for a key given twice too."""
    given: dict[str, Any] = {}
    for text in texts:
        key, value = parse_setting(text)
        if key in given:
            raise InputError(f"--set {key}: given twice; give it once")
        given[key] = value
    return given


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Flat layers of dotted keys as one nested mapping; later layers win."""
    nested: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            *parents, last = key.split(".")
            place = nested
            for parent in parents:
                if not isinstance(place.get(parent), dict):
                    place[parent] = {}
                place = place[parent]
            place[last] = copy.deepcopy(value)  # a later layer must not write into it
    return nested


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """One validated configuration from flat layers of dotted keys, the last the strongest.

    Raises InputError naming the key and what it takes.
    """
    for layer in layers:
        for key in layer:
            _check_key(key)
    try:
        return RunConfig.model_validate(merge(*layers))
    except ValidationError as error:
        errors = error.errors()
        where = [_key_of(e["loc"]) for e in errors]
        told = dict.fromkeys(
            plain_words(e["msg"]) for e, key in zip(errors, where, strict=True) if key == where[0]
        )
        words, value = harmless(", or ".join(told)), errors[0]["input"]
        field = words.partition(":")[0]
        if isinstance(value, dict) and field in value:  # of a group whose keys do not fit together
            raise InputError(f"{harmless(where[0])}.{words}") from None
        raise InputError(f"{harmless(where[0])} = {harmless(value)[:60]}: {words}") from None


def _key_of(location: tuple[int | str, ...]) -> str:
    """The key in which an error is; what pydantic adds for members of a union is left out."""
    parts, known = [str(part) for part in location], set(keys())
    whole = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((key for key in whole if key in known), ".".join(parts))


FLAGS: dict[str, str] = {
    "task": "task",
    "model": "model.name",
    "recipe": "recipe",
    "epochs": "schedule.length",
    "minutes": "schedule.minutes",
    "batch_size": "batch_size",
    "lr": "optim.lr",
    "seed": "seed",
    "val": "data.val",
    "weights": "model.weights",
    "freeze": "model.freeze",
    "device": "device",
    "workers": "data.workers",
    "threads": "threads",
    "precision": "precision",
    "on_bad": "data.on_bad",
    "checkpoint_every": "checkpoint_every",
    "patience": "schedule.stop_patience",
}
"""What the command line and `skipway.train` call the settings that are most asked for."""


def flag_of(key: str) -> str:
    """What the command line calls a setting: ``--lr``, or ``--set optim.clip``."""
    return next(
        (f"--{name.replace('_', '-')}" for name, other in FLAGS.items() if other == key),
        f"--set {key}",
    )


def _epochs(number: object) -> str:
    """A length from a number of epochs, written as `split_duration` reads it."""
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        typed = f"{number:g}" if isinstance(number, float) else harmless(number)
        raise InputError(f"--epochs {typed}: give a number above 0, without a unit")
    text = f"{Decimal(repr(value)):f}"  # no exponent
    return f"{text.removesuffix('.0')} epochs"


def from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that were given (not None) as dotted keys. Raises InputError for an unknown one."""
    given = {}
    for name, value in flags.items():
        if name not in FLAGS:
            raise InputError(f"unknown setting {harmless(name)!r}.{nearest(name, FLAGS)}")
        if value is not None:
            if name == "epochs":
                value = _epochs(value)
            elif name == "weights":
                value = str(value)
            given[FLAGS[name]] = value
    return given
