"""The house: who may import whom. Arrows point down or stay on their floor, never in a circle.

Every import counts, wherever it stands: inside functions, under TYPE_CHECKING (a type is an arrow
too), and by name through importlib.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "skipway"

FLOORS = {
    0: (
        "errors",
        "architecture",
        "images",
        "card",
        "config",
        "recipes",
        "settings",
        "shares",
        "files",
        "heads",
        "machine",
        "version",
        "shipped",
        "tensor_names",
    ),
    1: (
        "resnet",
        "data",
        "accumulation",
        "answers",
        "bootstrap",
        "detections",
        "drawing",
        "heatmap",
        "metrics",
        "norms",
        "retrieval",
        "segmentations",
    ),
    2: (
        "dialects",
        "peers",
        "peer_heads",
        "hub",
        "weights",
        "probes",
        "detectors",
        "embedders",
        "segmenters",
    ),
    3: ("tasks",),
    4: (
        "training",
        "export",
        "predictor",
        "locator",
        "pixel_predictor",
        "loading",
        "embedding",
        "evaluation",
        "explain",
        "publish",
    ),
    5: (
        "report",
        "check",
        "check_objects",
        "check_pixels",
        "doctor",
        "estimators",
        "probing",
        "study",
        "xray",
    ),
    6: ("cli", "__main__", ""),
}
"""Modules and packages by floor; "" is the package's own __init__."""

HEAVY = {"torch", "torchvision", "safetensors", "sklearn", "matplotlib", "onnx", "onnxscript"}
"""What only the training install has."""
LIGHT = {
    "answers",
    "bootstrap",
    "evaluation",
    "explain",
    "metrics",
    "predictor",
    "retrieval",
    "segmentations",
}
"""With floor 0: usable without the training install."""


@dataclass(frozen=True)
class Arrow:
    """One import: from a module to another, both named without ``skipway.`` or as outsiders."""

    source: str
    target: str
    ours: bool
    line: int
    runs: bool
    """At import time of the source: not in a function, not under TYPE_CHECKING."""


def floor(module: str) -> int | None:
    top = module.split(".")[0]
    return next((number for number, names in FLOORS.items() if top in names), None)


def modules(root: Path) -> dict[str, Path]:
    """Module names below the package, "" for the package itself, and their files."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def nodes(tree: ast.AST, runs: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        inside = runs and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = False
        yield child, runs
        yield from nodes(child, inside)


def imported(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Full dotted names that a node imports; of ``from a import b`` both a.b and its parent a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parent = node.module or ""
        if node.level:
            package = f"skipway.{module}".rstrip(".").split(".")
            up = node.level - is_package
            base = package[: len(package) - up] if up else package
            parent = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{parent}.{alias.name}" for alias in node.names)
    elif (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        yield node.args[0].value


def arrows(root: Path) -> list[Arrow]:
    """All imports in the package at `root`; ``from a import b`` points to b where b is a module."""
    files = modules(root)
    found = []
    for module, path in files.items():
        for node, runs in nodes(ast.parse(path.read_text("utf-8"))):
            for name in imported(node, module, path.name == "__init__.py"):
                ours = name.split(".")[0] == "skipway"
                target = name
                if ours:
                    target = name.removeprefix("skipway").removeprefix(".")
                    while target and target not in files:
                        target = target.rpartition(".")[0]
                found.append(Arrow(module, target, ours, getattr(node, "lineno", 0), runs))
    return found


def unknown(root: Path) -> list[str]:
    return [module for module in modules(root) if floor(module) is None]


def upward(root: Path) -> list[str]:
    return [
        f"{arrow.source or '__init__'}:{arrow.line} imports {arrow.target or 'skipway'}"
        for arrow in arrows(root)
        if arrow.ours and (floor(arrow.source) or 0) < (floor(arrow.target) or 0)
    ]


def cycle(root: Path) -> list[str]:
    """One circle of modules, or nothing."""
    graph: dict[str, set[str]] = {module: set() for module in modules(root)}
    for arrow in arrows(root):
        if arrow.ours:
            graph[arrow.source].add(arrow.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def with_parents(module: str) -> Iterator[str]:
    """A module and the packages around it, whose __init__ runs too when it is imported."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def heavy(root: Path) -> list[str]:
    """Light modules that take something heavy when they are imported, by themselves or others."""
    running = [arrow for arrow in arrows(root) if arrow.runs]
    found = []
    for module in modules(root):
        if floor(module) != 0 and module.split(".")[0] not in LIGHT and module != "":
            continue
        reached, new = set(), {module}
        while new:
            reached |= new
            targets = {a.target for a in running if a.ours and a.source in new}
            new = {package for target in targets for package in with_parents(target)} - reached
        found += [
            f"{module or '__init__'} takes {arrow.target} through {arrow.source or '__init__'}"
            for arrow in running
            if arrow.source in reached and not arrow.ours and arrow.target.split(".")[0] in HEAVY
        ]
    return found


def importers_of_study(root: Path) -> list[str]:
    return [
        f"{arrow.source}:{arrow.line}"
        for arrow in arrows(root)
        if arrow.ours
        and arrow.target.split(".")[0] == "study"
        and arrow.source.split(".")[0] not in ("study", "cli")
    ]


# --- the house as it stands -------------------------------------------------------------------


def test_every_module_has_a_floor() -> None:
    assert {"", "errors", "resnet"} <= set(modules(SOURCE))
    assert unknown(SOURCE) == []


def test_no_arrow_points_up() -> None:
    assert sum(arrow.ours for arrow in arrows(SOURCE)) > 5
    assert upward(SOURCE) == []


def test_no_circles() -> None:
    assert cycle(SOURCE) == []


def test_light_modules_stay_light() -> None:
    assert heavy(SOURCE) == []


def test_nothing_but_the_command_line_imports_study() -> None:
    assert importers_of_study(SOURCE) == []


@pytest.mark.parametrize(
    "code",
    [
        "import skipway",
        "import skipway.answers, skipway.card, skipway.images, skipway.metrics",
        "import runpy\n"
        "sys.argv = ['skipway', '--help']\n"
        "try:\n"
        "    runpy.run_module('skipway', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n",
    ],
    ids=["import skipway", "light modules", "skipway --help"],
)
def test_no_torch_is_loaded(code: str) -> None:
    check = f"heavy = {HEAVY!r} & set(sys.modules)\nassert not heavy, heavy\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{check}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- the inspector itself: each rule, broken in a small house ----------------------------------


def house(root: Path, **files: str) -> Path:
    """A package of the given modules; ``data__shards`` is data/shards.py."""
    for name, text in {"__init__": "", "errors": "", **files}.items():
        path = root / (name.replace("__", "/") if not name.startswith("__") else name)
        path = path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent != root:
            (path.parent / "__init__.py").touch()
    return root


UP = [
    "from skipway.resnet import ResNet",
    "import skipway.resnet",
    "import skipway.resnet as net",
    "from skipway import errors, resnet",
    "from . import resnet",
    "from .resnet import ResNet",
    "def f():\n    from skipway.resnet import ResNet",
    "class A:\n    def f(self):\n        import skipway.resnet",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from skipway.resnet import ResNet",
    "import importlib\nimportlib.import_module('skipway.resnet')",
    "try:\n    pass\nfinally:\n    import skipway.resnet",
]


@pytest.mark.parametrize("text", UP)
def test_an_upward_arrow_is_found(tmp_path: Path, text: str) -> None:
    assert upward(house(tmp_path, resnet="from skipway.errors import InputError")) == []
    assert len(upward(house(tmp_path, images=text))) == 1


def test_names_of_the_package_itself_are_upstairs(tmp_path: Path) -> None:
    assert len(upward(house(tmp_path, images="from skipway import train"))) == 1


def test_arrows_out_of_packages_are_found(tmp_path: Path) -> None:
    root = house(tmp_path, data__shards="from ..weights import load", weights="", training__loop="")
    assert upward(root) == ["data.shards:1 imports weights"]
    house(tmp_path, data__shards="from . import sources", data__sources="from .. import errors")
    assert upward(root) == []
    (root / "data" / "__init__.py").write_text("from ..training.loop import run")
    assert upward(root) == ["data:1 imports training.loop"]


def test_a_module_without_a_floor_is_found(tmp_path: Path) -> None:
    assert unknown(house(tmp_path, utils="", data__shards="")) == ["utils"]


def test_a_circle_is_found(tmp_path: Path) -> None:
    root = house(tmp_path, images="import skipway.card", card="def f():\n    import skipway.config")
    assert cycle(root) == []
    house(tmp_path, config="from skipway.images import decode")
    assert {"images", "card", "config"} <= set(cycle(root))


def test_heavy_imports_are_found(tmp_path: Path) -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    root = house(tmp_path, images=f"{lazy}def f():\n    import torch", resnet="import torch")
    assert heavy(root) == []
    house(tmp_path, predictor="def f():\n    from skipway.resnet import ResNet")
    assert heavy(root) == []
    house(tmp_path, predictor="from skipway.resnet import ResNet")
    assert heavy(root) == ["predictor takes torch through resnet"]
    (house(tmp_path, data__keyed="") / "data" / "__init__.py").write_text("import sklearn.svm")
    house(tmp_path, predictor="import skipway.data.keyed")
    assert heavy(root) == ["predictor takes sklearn.svm through data"]
    house(tmp_path, predictor="", metrics="class A:\n    from torch.nn import Module")
    assert heavy(root) == ["metrics takes torch.nn.Module through metrics"]


def test_an_import_of_study_is_found(tmp_path: Path) -> None:
    root = house(tmp_path, study__fig4="import skipway.study.fig5", study__fig5="")
    assert importers_of_study(root) == []
    house(tmp_path, cli="def f():\n    from skipway.study import fig4")
    assert importers_of_study(root) == []
    house(tmp_path, report="def f():\n    from skipway.study import fig4")
    assert importers_of_study(root) == ["report:2"]
