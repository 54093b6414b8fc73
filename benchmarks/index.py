"""The benchmarks: what each claims, what it needs, how long it takes, and how its result is read.

`skipway bench` reads this table. It needs nothing but Python's own library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""case, ours, peer, ratio, n, spread (least and largest), bar and met; None where there is none."""


@dataclass(frozen=True)
class Benchmark:
    """One claim, and the file that measures it."""

    claim: str
    minutes: float
    """About, on 2 cores."""
    rows: Callable[[Any], Iterator[Row]]
    """From what ``results/RESULT.json`` holds."""
    file: str
    arguments: tuple[str, ...] = ()
    """`{data}` and the like are what the user names, and are needed; `{at}` is the commit."""
    also: tuple[tuple[str, str], ...] = ()
    """Arguments in pairs that are left out where the user does not name what they take."""
    result: str = ""
    """Of the same name as the file, where it is empty."""
    gpu: bool = False
    """Whether it needs one."""


def row(
    case: str,
    ours: Any,
    peer: Any = None,
    ratio: Any = None,
    *,
    n: int | None = None,
    bar: float | None = None,
    met: bool | None = None,
) -> Row:
    """A row; a figure is a number, or what `recorded.spread` gave.

    The spread is that of the ratio where there is one, else of our figure.
    """
    told = ratio if ratio is not None else ours
    spread = [told["min"], told["max"]] if isinstance(told, dict) else None
    return {
        "case": case,
        "ours": median(ours),
        "peer": median(peer),
        "ratio": median(ratio),
        "n": told["n"] if isinstance(told, dict) else n,
        "spread": spread,
        "bar": bar,
        "met": median(told) >= bar if bar is not None and met is None else met,
    }


def median(figure: Any) -> Any:
    return figure["median"] if isinstance(figure, dict) else figure


def at_most(case: str, ours: Any, bar: float) -> Row:
    """A row whose figure must not be above the bar."""
    return row(f"{case}, at most", ours, bar=bar, met=median(ours) <= bar)


# By benchmark: its rows


def of_speed(*models: str) -> Callable[[Any], Iterator[Row]]:
    def rows(result: Any) -> Iterator[Row]:
        for model in models:
            if model not in result["cases"]:
                continue
            case = result["cases"][model]
            rates = case["images_per_second"]
            for peer, ratio in case["ratio"].items():
                bar = case["bar"] if peer == "plain" else None
                name = f"{model}, images/s, against {peer.replace('_', ' in ')}"
                yield row(name, rates["skipway"], rates[peer], ratio, bar=bar)

    return rows


def of_limit(result: Any) -> Iterator[Row]:
    for model, case in result["cases"].items():
        name = f"{model}, ms a step, against the sum of its best layers"
        yield row(name, case["step_ms"], case["limit_ms"], case["share"], bar=case["bar"])


def of_scaling(result: Any) -> Iterator[Row]:
    cases = result["cases"]
    for model, case in cases.get("processes", {}).items():
        if "images_per_second" in case:
            one, _, two = case["images_per_second"].values()
            name = f"{model}, images/s, 2 processes against 1"
            yield row(name, two, one, case["two_processes_over_one_thread"])
    curve = cases.get("depth", {}).get("curve", [])
    for at in sorted({point["depth"] for point in curve}):
        kept, anew = (p["peak_memory_mib"] for p in curve if p["depth"] == at)
        ratio = round(anew / kept, 4)
        yield row(f"resnet{at}, peak MiB with checkpointing, without", anew, kept, ratio, n=1)
    for net in cases.get("large", {}).get("nets", []):
        name = f"{net['model']}, batch {net['batch']}, peak MiB with checkpointing"
        yield row(name, net["peak_memory_mib"], n=1)


def of_accuracy(result: Any) -> Iterator[Row]:
    found = row("accuracy", result["accuracy"], n=1, bar=result["bar"])
    yield found | {"spread": result["interval"]}


def of_speedrun(result: Any) -> Iterator[Row]:
    seeds = list(result["cases"].values())
    reached = [seed["accuracy"] for seed in seeds]
    mean = sum(reached) / len(reached)
    enough = mean >= seeds[0]["bar"]["accuracy"] and len(seeds) >= seeds[0]["bar"]["seeds"]
    found = row("mean accuracy", round(mean, 5), n=len(seeds), bar=0.94, met=enough)
    yield found | {"spread": [min(reached), max(reached)]}
    timed = [s["minutes"] for s in seeds if s["threads"] == s["machine"]["cores"]]
    if timed:
        yield at_most("minutes on all cores", max(timed), seeds[0]["bar"]["minutes"])


def of_plans(result: Any) -> Iterator[Row]:
    for by in ("plan", "train"):
        yield row(
            f"{by}: forecasts within 15 %", result["within"][by], n=len(result["runs"]),
            bar=result["bar"],
        )  # fmt: skip


def of_imported(result: Any) -> Iterator[Row]:
    found = result["metrics"]["accuracy"]
    yield row("accuracy, against its author's", found, 0.9173, n=1, met=round(found, 4) == 0.9173)


def of_digits(result: Any) -> Iterator[Row]:
    yield row("accuracy", result["accuracy"], bar=result["bar"]["accuracy"])
    yield at_most("seconds", result["seconds"], result["bar"]["seconds"])


def of_startup(result: Any) -> Iterator[Row]:
    yield at_most("seconds", result["help_seconds"], result["bar"]["help_seconds"])


def of_probes(result: Any) -> Iterator[Row]:
    for name, case in result["cases"].items():
        worst = max(case["epoch_ratio"].values(), key=lambda ratio: ratio["median"])
        yield at_most(f"{name}: epoch over one without", worst, case["bar"])


def of_kills(result: Any) -> Iterator[Row]:
    equal, of = result["equal_to_the_bit"], result["trainings"]
    yield row("trainings equal to the bit", equal, n=of, bar=of)


def of_restarts(result: Any) -> Iterator[Row]:
    equal, of = result["equal_to_the_bit"], result["kills"]
    yield row("restarts equal to the bit", equal, n=of, bar=of)


def of_resume(result: Any) -> Iterator[Row]:
    for name, case in result["cases"].items():
        case_name = f"{name}: seconds after start-up until ready"
        yield at_most(case_name, case["after_start_up_seconds"], case["bar"])


def of_doctor(result: Any) -> Iterator[Row]:
    right, _, of = result["right_diagnoses"].partition(" of ")
    yield row("mistakes found", int(right), n=int(of), bar=int(of))
    yield at_most("false alarms", result["false_alarms"], 0)


def of_small_data(result: Any) -> Iterator[Row]:
    for name, case in result["cases"].items():
        metric = case["metric"]
        yield row(f"{name}: {metric}", case["metrics"][metric], n=1, bar=case["bar"][metric])
        yield at_most(f"{name}: minutes", case["minutes"], case["bar"]["minutes"])


def of_detection_speed(result: Any) -> Iterator[Row]:
    for head, case in result["cases"].items():
        rates = case["images_per_second"]
        for name, ratio in case["ratio"].items():
            told = "light heads" if name == "skipway" else "torchvision's heads"
            mine, theirs = rates[name], rates["torchvision"]
            yield row(f"{head}, {told}, images/s", mine, theirs, ratio, bar=case["bar"])


def of_detector_layers(result: Any) -> Iterator[Row]:
    for name, case in result["cases"].items():
        mine, theirs = (case["seconds"][side] for side in ("skipway", "torchvision"))
        yield row(f"{name}, seconds, ratio theirs to ours", mine, theirs, case["ratio"])


def of_detection_schedule(result: Any) -> Iterator[Row]:
    for name, case in result["cases"].items():
        for split, found in case["splits"].items():
            mine, theirs = (found[side]["ap"] for side in ("skipway", "torchvision"))
            told = f"{name}: AP on {split}, spread and bar of the difference"
            least = case["bar"]["difference"]
            yield row(told, mine, theirs, n=found["n"], bar=least, met=found["met"]) | {
                "spread": found["interval"]
            }


def of_finetune(result: Any) -> Iterator[Row]:
    gain, n, bars = result["gain_points"], result["accuracy"]["finetune"]["n"], result["bars"]
    found = row("points of accuracy above scratch", gain["mean"], n=n, bar=bars["gain_points"])
    yield found | {"spread": [gain["low"], gain["high"]]}
    name = "frozen: epoch on kept features, times faster"
    yield row(name, result["frozen"]["ratio"], n=1, bar=bars["ratio"])


def of_equal(result: Any) -> Iterator[Row]:
    equal = sum(result["equal"].values()), len(result["equal"])
    yield row("parts equal to the bit", equal[0], n=equal[1], bar=equal[1])


STREET = ("--width", "0.5", "--crop", "240", "--batch-size", "4", "--minutes", "44")
"""How a net for streets is kept small enough for one core and an hour."""

BENCHMARKS = {
    "startup": Benchmark("`skipway --help` answers at once", 1, of_startup, "startup.py"),
    "digits": Benchmark("the demo's accuracy and time", 3, of_digits, "digits.py"),
    "train_speed": Benchmark(
        "training CIFAR nets, images/s against the plain loop and timm",
        25,
        of_speed("resnet20", "resnet18_cifar"),
        "train_speed.py",
        ("--models", "resnet20", "resnet18_cifar", "--data", "{data}"),
        (("--timm", "{timm}"),),
    ),
    "train_speed_photos": Benchmark(
        "training ResNet-50 at 224 px, images/s against the plain loop and timm",
        13,
        of_speed("resnet50"),
        "train_speed.py",
        ("--models", "resnet50", "--photos", "{photos}"),
        (("--timm", "{timm}"),),
        result="train_speed",
    ),
    "machine_limit": Benchmark(
        "the share of the machine's own limit that a training step reaches",
        6,
        of_limit,
        "machine_limit.py",
        ("--data", "{data}"),
    ),
    "scaling": Benchmark(
        "images/s by processes; memory and time by depth",
        20,
        of_scaling,
        "scaling.py",
        ("--data", "{data}"),
        (("--photos", "{photos}"),),
    ),
    "scaling_processes": Benchmark(
        "images/s by processes",
        8,
        of_scaling,
        "scaling.py",
        ("--data", "{data}", "--parts", "processes"),
        result="scaling",
    ),
    "probes_overhead": Benchmark(
        "what the statistics of the signal through depth cost", 5, of_probes, "probes_overhead.py"
    ),
    "kills": Benchmark(
        "trainings killed and gone on with are equal to the bit",
        30,
        of_kills,
        "kills.py",
        ("--kills", "104"),
    ),
    "restarts": Benchmark(
        "trainings restarted by torchrun are equal to the bit",
        20,
        of_restarts,
        "restarts.py",
        ("--kills", "20"),
    ),
    "resume": Benchmark(
        "a run that was stopped soon takes its next step",
        7,
        of_resume,
        "resume.py",
        ("--data", "{data}", "--photos", "{photos}"),
    ),
    "fashion_mnist_resnet20": Benchmark(
        "Fashion-MNIST with ResNet-20: test accuracy",
        50,
        of_accuracy,
        "fashion_mnist_resnet20.py",
        ("--out", "runs/fashion-mnist-resnet20-{at}"),
    ),
    "cifar10_resnet20": Benchmark(
        "CIFAR-10 with ResNet-20 and all defaults: test accuracy",
        60,
        of_accuracy,
        "cifar10_resnet20.py",
        ("--data", "{data}", "--out", "runs/cifar10-resnet20-{at}"),
    ),
    **{
        f"speedrun_{seed}": Benchmark(
            f"94 % on CIFAR-10 with a residual network, seed {seed}: accuracy and minutes",
            50,
            of_speedrun,
            "speedrun.py",
            ("--data", "{data}", "--seed", str(seed), "--out", f"runs/speedrun-{seed}-{{at}}"),
            result="speedrun",
        )
        for seed in (0, 1, 2)
    },
    "plans": Benchmark(
        "how long a training takes is told before it begins",
        25,
        of_plans,
        "plans.py",
        ("--data", "{data}", "--photos", "{photos}"),
    ),
    "doctor": Benchmark(
        "the import doctor finds how a checkpoint is mislabelled",
        20,
        of_doctor,
        "doctor.py",
        ("--data", "{data}"),
    ),
    "imported_weights": Benchmark(
        "a third party's weights score what their author says",
        1,
        of_imported,
        "imported_weights.py",
        ("--weights", "{weights}", "--data", "{data}"),
    ),
    "imagenette_5": Benchmark(
        "Imagenette from scratch in 5 epochs: accuracy",
        35,
        of_accuracy,
        "imagenette.py",
        ("--data", "{photos}", "--epochs", "5", "--out", "runs/imagenette-5-{at}"),
        result="imagenette_5",
    ),
    "imagenette_20": Benchmark(
        "Imagenette from scratch in 20 epochs: accuracy",
        85,
        of_accuracy,
        "imagenette.py",
        ("--data", "{photos}", "--epochs", "20", "--out", "runs/imagenette-20-{at}"),
        result="imagenette_20",
    ),
    "finetune": Benchmark(
        "a few hundred photographs: fine-tuning against scratch",
        40,
        of_finetune,
        "finetune.py",
        (
            *("--data", "{few}", "--weights", "{run}", "--size", "160"),
            *("--out", "runs/finetune-{at}"),
        ),
    ),
    **{
        f"{name.replace('-', '_')}_{seed}": Benchmark(
            f"{what} on {name}, seed {seed}: how good from scratch, and minutes",
            60,
            of_small_data,
            "small_data.py",
            (
                *("--case", name, "--data", place, "--seed", str(seed)),
                *("--out", f"runs/{name}-{seed}-{{at}}"),
                *more,
            ),
            result="small_data",
        )
        for name, what, place, more in (
            ("blood-cells", "boxes", "{boxes}", ("--minutes", "32")),
            ("nuclei", "masks", "{masks}", ()),
            ("street", "classes of pixels", "{pixels}", STREET),
        )
        for seed in (0, 1, 2)
    },
    "detect_speed": Benchmark(
        "training detectors, images/s against torchvision's model and loop",
        20,
        of_detection_speed,
        "detect_speed.py",
        ("--boxes", "{boxes}", "--masks", "{masks}", "--rounds", "3"),
    ),
    "detect_speed_masks": Benchmark(
        "training Mask R-CNN alone, with nothing read ahead: images/s against torchvision",
        10,
        of_detection_speed,
        "detect_speed.py",
        ("--masks", "{masks}", "--rounds", "3", "--workers", "0"),
        result="detect_speed",
    ),
    "detector_layers": Benchmark(
        "RoIAlign and the RPN's head, forward and backward, against torchvision's layers",
        1,
        of_detector_layers,
        "detector_layers.py",
    ),
    "detect_schedule": Benchmark(
        "detectors after the same short schedule: AP against torchvision's model and loop",
        90,
        of_detection_schedule,
        "detect_schedule.py",
        (
            *("--data", "{boxes}", "--out", "runs/detect-schedule-{at}", "--seed", "0"),
            *("--epochs", "8", "--size", "256"),
        ),
    ),
    "folder_and_zip": Benchmark(
        "a folder and its zip give equal results",
        3,
        of_equal,
        "folder_and_zip.py",
        ("--data", "{few}"),
    ),
}
