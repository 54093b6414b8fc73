"""The tables of results, made from ``results/*.json``: all in docs/measured.md, some in README.md.

python benchmarks/table.py          # rewrites both
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index import BENCHMARKS

ROOT = Path(__file__).parents[1]
START, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"
FIRST = (
    "`make demo`",
    "A third party's",
    "CIFAR-10, `resnet8_speedrun`",
    "Imagenette at 128 px from scratch, ResNet-50-D with SE, 0.5",
    "`blood-cells`",
    "`nuclei`",
    "`street`",
    "Training `resnet50` (batch 8, 224 px) from class folders, against the plain",
    "Training `resnet50` (batch 8, 224 px) from class folders, against that loop",
    "Training `resnet50` (batch 8, 224 px) from class folders, against timm",
    "Training Faster R-CNN",
    "Training Mask R-CNN",
    "How long a training takes",
    "Trainings killed",
    "`skipway study",
)
"""How the rows begin that README.md shows."""

HEADS = {"faster-rcnn": "Faster R-CNN", "mask-rcnn": "Mask R-CNN"}


def result(name: str) -> Any:
    """One committed measurement."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def rows() -> list[tuple[str, str, str]]:
    """What was measured, the figure with n and spread, and the command."""
    digits, cifar = result("digits"), result("cifar10_resnet20")
    imported = result("imported_weights")
    reached, seconds = digits["accuracy"], digits["seconds"]
    table = [
        (
            "`make demo`'s training on the embedded digits: test accuracy",
            f"{reached['median']:.2%} (median of {reached['n']} seeds, "
            f"{reached['min']:.2%} to {reached['max']:.2%}) in {seconds['median']:.0f} s",
            digits["command"],
        ),
        (
            f"CIFAR-10, ResNet-20, all defaults, {cifar['epochs']} epochs: test accuracy",
            accuracy(cifar),
            cifar["command"],
        ),
        (
            "A third party's CIFAR-10 ResNet-20 loaded as it is (its author: 91.73 %)",
            f"{imported['metrics']['accuracy']:.2%} of {imported['n']:,} images",
            imported["command"],
        ),
    ]
    table += speedrun_rows()
    table += small_data_rows()
    table += training_rows()
    table += more_rows()
    table += study_rows()
    help_seconds, same = result("startup")["help_seconds"], result("folder_and_zip")
    table.append(
        (
            "`ants-bees` trained, evaluated and predicted from a folder and from its zip",
            "equal to the bit" if all(same["equal"].values()) else "not equal",
            same["command"],
        )
    )
    table.append(
        (
            "`skipway --help`",
            f"{help_seconds['median']:.2f} s (median of {help_seconds['n']})",
            result("startup")["command"],
        )
    )
    return table


PEERS = {
    "plain": "the plain float32 PyTorch loop",
    "plain_bf16": "that loop in bf16 and channels_last",
    "timm": "timm's train.py in float32, its default",
}


def cases(name: str) -> dict[str, Any]:
    """The cases of a measurement by name, none where it is absent from ``results/``."""
    exists = (ROOT / "results" / f"{name}.json").exists()
    return result(name)["cases"] if exists else {}


def training_rows() -> list[tuple[str, str, str]]:
    """Speed of training: beside the peers, against the machine's limit, by processes and depth."""
    table = []
    for model, case in cases("train_speed").items():
        rates = case["images_per_second"]
        for peer, ratio in case["ratio"].items():
            table.append(
                (
                    f"Training `{model}` (batch {case['batch']}, {case['size']} px) from class "
                    f"folders, against {PEERS[peer]}",
                    f"{ratio['median']:.2f} times the images/s ({spread(ratio)}; "
                    f"{speed(rates['skipway'])} against {speed(rates[peer])})",
                    case["command"],
                )
            )
    for model, case in cases("machine_limit").items():
        rest = [
            (name, share) for name, share in case["where_it_goes"].items() if "conv" not in name
        ]
        told = ", ".join(f"{name} {share:.0%}" for name, share in rest[:3])
        table.append(
            (
                f"A step of `{model}` (batch {case['batch']}): the best times measured of its "
                "convolutions, as a share of it",
                f"{case['share']['median']:.0%} (median of {case['share']['n']}, "
                f"{case['share']['min']:.0%} to {case['share']['max']:.0%}); the rest of a step, "
                f"profiled: {told}",
                case["command"],
            )
        )
    scaling = cases("scaling")
    for model, figures in scaling.get("processes", {}).items():
        if "images_per_second" in figures:
            one, threads, two = figures["images_per_second"].values()
            ratio = figures["two_processes_over_one_thread"]
            table.append(
                (
                    f"Training `{model}` in two processes of one thread, against one",
                    f"{ratio['median']:.2f} times the images/s ({spread(ratio)}; {speed(two)} "
                    f"against {speed(one)}; one process of two threads: {speed(threads)})",
                    scaling["processes"]["command"],
                )
            )
    if "depth" in scaling:
        curve = scaling["depth"]["curve"]
        deepest = max(point["depth"] for point in curve)
        kept, anew = (
            next(p for p in curve if p["depth"] == deepest and p["checkpointing"] is c)
            for c in (False, True)
        )
        table.append(
            (
                f"`resnet{deepest}`, batch {scaling['depth']['batch']}, with activations computed "
                "anew ([by depth](scaling.svg))",
                f"{anew['peak_memory_mib']:,.0f} MiB at most, not {kept['peak_memory_mib']:,.0f}; "
                f"{anew['step_seconds'] / kept['step_seconds']:.2f} times the time",
                scaling["depth"]["command"],
            )
        )
    for net in scaling.get("large", {}).get("nets", []):
        table.append(
            (
                f"`{net['model']}` at {net['size']} px, batch {net['batch']}, activations computed "
                "anew: peak memory of training",
                f"{net['peak_memory_mib']:,.0f} MiB",
                scaling["large"]["command"],
            )
        )
    return table


def _metric(key: str) -> str:
    """A metric of a task as papers write it."""
    return key.replace("_", " ").replace("ap", "AP").replace("miou", "mIoU")


def small_data_rows() -> list[tuple[str, str, str]]:
    """Small data: a row for each seed; speed and AP of detectors beside torchvision's."""
    table = []
    for name, case in cases("small_data").items():
        figures = ", ".join(
            f"{_metric(metric)} {value:.1%}" for metric, value in list(case["metrics"].items())[:3]
        )
        low, high = case["interval"]
        narrower = "" if case["width"] == 1 else f" of {case['width']:g} times the width"
        crops = f", trained on crops of {case['crop']}" if case.get("crop") else ""
        table.append(
            (
                f"`{name.partition(',')[0]}` ({case['training_images']} training images, "
                f"{case['size']} px{crops}), `{case['model']}`{narrower} from scratch, "
                f"{case['epochs']} epochs: scores on {case['n']} {case['split']} images"
                + (", on which the epoch was chosen" if case["split"] == "val" else ""),
                f"{figures} (the first {low:.1%} to {high:.1%}; seed {case['seed']}) in "
                f"{case['minutes']:.0f} min on {case['threads']} "
                f"thread{'s' if case['threads'] > 1 else ''}, {case['precision']}",
                case["command"],
            )
        )
    for head, case in cases("detect_speed").items():
        rates = case["images_per_second"]
        for side, heads in (("skipway", "light heads, its default"), ("full_heads", "same heads")):
            ratio = case["ratio"][side]
            table.append(
                (
                    f"Training {HEADS[head]} on ResNet-18 with FPN ({case['size']} px, batch "
                    f"{case['batch']}; {heads}) against torchvision's model and loop",
                    f"{ratio['median']:.2f} times the images/s ({spread(ratio)}; "
                    f"{speed(rates[side])} against {speed(rates['torchvision'])})",
                    case["command"],
                )
            )
    for name, case in cases("detector_layers").items():
        title = {"roi_align": "RoIAlign", "rpn_head": "An RPN's head"}[name]
        seconds = {side: took["median"] for side, took in case["seconds"].items()}
        table.append(
            (
                f"{title} on a CPU, forward and backward ({case['threads']} threads), against "
                "torchvision's",
                f"{case['ratio']['median']:.1f} times as fast ({spread(case['ratio'])}; "
                f"{seconds['skipway']:.2f} s against {seconds['torchvision']:.2f} s)",
                case["command"],
            )
        )
    for name, case in cases("detect_schedule").items():
        found = [
            f"{split} {ours['ap']:.1%} against {theirs['ap']:.1%}, {points(each)}"
            for split, each in case["splits"].items()
            for ours, theirs in [(each["skipway"], each["torchvision"])]
        ]
        table.append(
            (
                f"`{name.partition(',')[0]}` ({case['training_images']} training images, "
                f"{case['size']} px), Faster R-CNN on ResNet-18 with FPN from scratch, "
                f"{case['heads']} heads, {case['epochs']} epochs, seed {case['seed']}: AP against "
                "torchvision's model and loop",
                "; ".join(found),
                case["command"],
            )
        )
    return table


def study_rows() -> list[tuple[str, str, str]]:
    """The studies that were run: how many of their numbers came out as the papers say."""
    table = []
    for path in sorted((ROOT / "results" / "studies").glob("*/*/study.json")):
        found = json.loads(path.read_text())
        seeds = f"{found['seeds']} seed{'s' if found['seeds'] > 1 else ''}"
        told = f"{found['tally'] or found['verdict']} ({seeds})"
        what = f"`skipway study {found['study']}`, scale {found['scale']}: {found['claim']}"
        table.append((what, told, found["command"]))
    return table


def points(found: Any) -> str:
    """A difference of two scores of the same images, with its interval."""
    ends = found["interval"]
    within = "" if ends is None else f", 95 % interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
    return (
        f"{100 * found['difference']:+.1f} points (p = {found['p']:.2g}{within}, "
        f"{found['n']} images)"
    )


def speedrun_rows() -> list[tuple[str, str, str]]:
    """CIFAR-10 in less than an hour: one row over the seeds."""
    seeds = list(cases("speedrun").values())
    if not seeds:
        return []
    reached = [seed["accuracy"] for seed in seeds]
    alone = [seed["accuracy_of_one_view"] for seed in seeds]
    of = f"mean of {len(seeds)} seeds, {min(reached):.2%} to {max(reached):.2%}"
    of = of if len(seeds) > 1 else "one seed"
    timed = [seed for seed in seeds if seed["threads"] == seed["machine"]["cores"]] or seeds
    longest = {
        precision: max(seed["minutes"] for seed in timed if seed["precision"] == precision)
        for precision in sorted({seed["precision"] for seed in timed})
    }
    minutes = ", ".join(f"{of:.0f} min in {precision}" for precision, of in longest.items())
    return [
        (
            f"CIFAR-10, `{seeds[0]['model']}`, recipe `speedrun-cifar`, {seeds[0]['epochs']} "
            "epochs, all 50,000 training images: test accuracy of six views",
            f"{sum(reached) / len(reached):.2%} ({of}; "
            f"of one view {sum(alone) / len(alone):.2%}); at most {minutes}, on "
            f"{timed[0]['threads']} threads",
            seeds[0]["command"],
        )
    ]


def spread(figure: Any) -> str:
    """The number of measurements and their least and largest."""
    return f"median of {figure['n']}, {figure['min']:.2f} to {figure['max']:.2f}"


def speed(figure: Any) -> str:
    """Images/s, with a digit after the point where there are few."""
    return f"{figure['median']:,.0f}" if figure["median"] >= 20 else f"{figure['median']:.1f}"


def more_rows() -> list[tuple[str, str, str]]:
    """The measurements that are long and may be absent from ``results/``."""
    table = []

    def add(name: str, what: str, figure: Callable[[Any], str]) -> None:
        if (ROOT / "results" / f"{name}.json").exists():
            found = result(name)
            table.append((what.format(**found), figure(found), found["command"]))

    add(
        "fashion_mnist_resnet20",
        "Fashion-MNIST, ResNet-20, {epochs} epochs with Muon: test accuracy",
        accuracy,
    )
    for epochs in (5, 20):
        add(
            f"imagenette_{epochs}",
            "Imagenette at 128 px from scratch, ResNet-50-D with SE, {architecture[width]} as wide,"
            " {epochs} epochs: accuracy on its validation images, nothing chosen on them",
            lambda found: (
                f"{accuracy(found)} in {found['minutes']:.0f} min on "
                f"{found['threads']} thread; the leaderboard's best: {found['leaderboard']:.2%}"
            ),
        )
    add(
        "finetune",
        "Fine-tuning 244 photographs (`ants-bees`) from own Imagenette weights, against training "
        "the same net from scratch: points of validation accuracy",
        lambda found: (
            "{mean:+.1f} (95 % interval {low:+.1f} to {high:+.1f}, ".format(**found["gain_points"])
            + f"{found['accuracy']['finetune']['n']} seeds; medians "
            f"{found['accuracy']['finetune']['median']:.1%} and "
            f"{found['accuracy']['scratch']['median']:.1%})"
        ),
    )
    add(
        "finetune",
        "An epoch of a frozen backbone on features computed once, against computing them anew",
        lambda found: f"{found['frozen']['ratio']:.0f} times faster",
    )
    add(
        "plans",
        "How long a training takes, told before it: trainings of other data, nets and lengths told "
        "within 15 %",
        lambda found: (
            f"{found['within']['plan']} of {len(found['runs'])} by `skipway plan`, "
            f"{found['within']['train']} by `train` itself; of peak memory "
            f"{found['within']['memory']}"
        ),
    )
    add(
        "resume",
        "A run that was stopped, from the end of start-up until it goes on",
        lambda found: "; ".join(
            f"{case}: {figures['after_start_up_seconds']['median']:.1f} s "
            f"({spread(figures['after_start_up_seconds'])}; start-up "
            f"{figures['start_up_seconds']['median']:.1f} s)"
            for case, figures in found["cases"].items()
        ),
    )
    add(
        "doctor",
        "The import doctor on mislabelled checkpoints, and on right ones",
        lambda found: (
            f"{found['right_diagnoses']} found; {found['false_alarms']} false alarms "
            f"on {len(found['controls'])} right ones"
        ),
    )
    add(
        "probes_overhead",
        "What the statistics of the signal through depth cost an epoch",
        lambda found: "; ".join(
            f"{case}: {max(r['median'] for r in figures['epoch_ratio'].values()) - 1:.1%} at most"
            for case, figures in found["cases"].items()
        ),
    )
    add(
        "kills",
        "Trainings killed at random moments (kill -9) and gone on with, against whole ones: "
        "network, average, optimizer, generators and log",
        lambda found: (
            f"equal to the bit in {found['equal_to_the_bit']} of {found['trainings']} trainings, "
            f"{found['kills']} kills"
        ),
    )
    add(
        "restarts",
        "Trainings of two processes, one killed (kill -9), started again by torchrun",
        lambda found: f"equal to the bit in {found['equal_to_the_bit']} of {found['kills']}",
    )
    return table


def accuracy(found: Any) -> str:
    """An accuracy of one seed with its interval."""
    low, high = found["interval"]
    return (
        f"{found['accuracy']:.2%} (one seed; 95 % interval {low:.2%} to {high:.2%}, "
        f"{found['n']:,} images)"
    )


def table_of(shown: list[tuple[str, str, str]]) -> str:
    """Rows as Markdown."""
    lines = ["| what | measured | command |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | `{command}` |" for what, figure, command in shown]
    return "\n".join(lines)


def short_of() -> str:
    """The bars that committed results do not meet, and what else is to be known of some, as
    Markdown."""
    missed = {}
    for name, benchmark in BENCHMARKS.items():
        path = ROOT / "results" / f"{benchmark.result or name}.json"
        for row in benchmark.rows(json.loads(path.read_text())) if path.exists() else ():
            if row["met"] is False:
                figure = row["ours"] if row["ratio"] is None else row["ratio"]
                missed[path.stem, row["case"]] = f"{row['case']}: {figure:g}, bar {row['bar']:g}"
    notes = {path.stem: json.loads(path.read_text()).get("note") for path in results()}
    lines = [f"- `{stem}`: {said}." for (stem, _), said in missed.items()]
    lines += [f"- `{stem}`: {note.rstrip('.')}." for stem, note in notes.items() if note]
    return "\n".join(lines)


def results() -> list[Path]:
    """The files of committed measurements."""
    return sorted((ROOT / "results").glob("*.json"))


def machines() -> str:
    """What the measurements were made on."""
    found = [json.loads(path.read_text()) for path in results()]
    parts = [part for one in found for part in (one, *one.get("cases", {}).values())]
    stamps = [part["machine"] for part in parts if "machine" in part]
    processors = "; ".join(dict.fromkeys(machine["cpu"] for machine in stamps))
    torch = ", ".join(sorted({machine["versions"]["torch"] for machine in stamps}))
    most = max(machine["cores"] for machine in stamps)
    return (
        f"On one or {most} cores ({processors}) with PyTorch {torch}, no GPU; each file says what "
        "it was measured on."
    )


def markdown() -> str:
    """The table of README.md."""
    first = [row for row in rows() if row[0].startswith(FIRST)]
    return f"{table_of(first)}\n\n{machines()}"


def document() -> str:
    """docs/measured.md."""
    return f"""# What was measured

Made by `python benchmarks/table.py` from the files in [results/](../results/), which hold the
command, the machine and the spread of each figure, and of benchmarks the commit that they ran at:
`-dirty` says that files differed from it. {machines()}

{table_of(rows())}

## Targets that were missed, and notes

{short_of()}
"""


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    _, after = rest.split(END)
    readme.write_text(f"{before}{START}\n{markdown()}\n{END}{after}")
    (ROOT / "docs" / "measured.md").write_text(document())


if __name__ == "__main__":
    main()
