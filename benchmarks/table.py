"""The table of results in README.md, made from ``results/*.json``.

python benchmarks/table.py          # rewrites the table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"


def result(name: str) -> Any:
    """One committed measurement."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def rows() -> list[tuple[str, str, str]]:
    """What was measured, the figure with n and spread, and the command."""
    digits, cifar = result("digits"), result("cifar10_resnet20")
    imported, speed = result("imported_weights"), result("train_speed")
    accuracy, seconds = digits["accuracy"], digits["seconds"]
    low, high = cifar["interval"]
    table = [
        (
            "`make demo`'s training on the embedded digits: test accuracy",
            f"{accuracy['median']:.2%} (median of {accuracy['n']} seeds, "
            f"{accuracy['min']:.2%} to {accuracy['max']:.2%}) in {seconds['median']:.0f} s",
            digits["command"],
        ),
        (
            f"CIFAR-10, ResNet-20, all defaults, {cifar['epochs']} epochs: test accuracy",
            f"{cifar['accuracy']:.2%} (one seed; 95 % interval {low:.2%} to {high:.2%}, "
            f"{cifar['n']:,} images)",
            cifar["command"],
        ),
        (
            "A third party's CIFAR-10 ResNet-20 loaded as it is (its author: 91.73 %)",
            f"{imported['metrics']['accuracy']:.2%} of {imported['n']:,} images",
            imported["command"],
        ),
    ]
    for model, figures in speed["models"].items():
        ratio = figures["ratio"]
        ours = figures["skipway_images_per_second"]["median"]
        peer = figures["plain_images_per_second"]["median"]
        table.append(
            (
                f"Training `{model}` from class folders, against the plain float32 PyTorch loop",
                f"{ratio['median']:.2f} times the images/s (median of {ratio['n']}, "
                f"{ratio['min']:.2f} to {ratio['max']:.2f}; {ours:,.0f} against {peer:,.0f})",
                speed["command"],
            )
        )
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


def markdown() -> str:
    """The table as Markdown."""
    machine = result("train_speed")["machine"]
    lines = ["| what | measured | command |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | `{command}` |" for what, figure, command in rows()]
    lines += ["", f"On {machine['cores']} cores of an {machine['cpu']} with PyTorch "]
    lines[-1] += f"{machine['versions']['torch']}, no GPU."
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    _, after = rest.split(END)
    readme.write_text(f"{before}{START}\n{markdown()}\n{END}{after}")


if __name__ == "__main__":
    main()
