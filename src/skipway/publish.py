"""Trained models in the forms that other libraries load, on the disk and on a hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from skipway.architecture import Architecture
from skipway.card import Card, Measured, last_part, without_places
from skipway.dialects import spell
from skipway.errors import InputError, harmless
from skipway.files import PEER_FILES, atomic_folder, atomic_write, check_new, is_hub_name
from skipway.hub import client, host_of, repository, status, unreachable
from skipway.peers import NOT_STATED, check_expressible, peer_files, timm_name, torchvision_names
from skipway.predictor import open_network, torch_source
from skipway.resnet import ResNet
from skipway.shares import percent
from skipway.version import __version__
from skipway.weights import save_weights

Form = Literal["torchvision", "timm", "huggingface", "skipway"]
HubForm = Literal["timm", "huggingface", "skipway"]


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote."""

    path: Path
    files: tuple[Path, ...]
    load: str
    """How the peer loads it, in Python."""


def convert(
    model: str | os.PathLike[str], form: Form, out: str | os.PathLike[str] | None = None
) -> Converted:
    """Write a model under the names of a peer, so that it loads what Skipway trained.

    torchvision: a state dict, .pth or .safetensors. timm and huggingface: a folder with
    config.json and model.safetensors, for huggingface preprocessor_config.json too. skipway: one
    .safetensors with its card, whatever the model was kept in. Safetensors hold Skipway's card in
    each form. Peers know no temperature: the classifier is divided by the card's, for the same
    probabilities. No form tells the folders of who trained (`without_places`), nor to a peer class
    names that were assumed. Where half a border is no whole pixel, each crops its own way, one
    pixel off (`Preprocess.odd_border`). `out`: None names it after the model, in the present
    folder. Whole or not at all. Raises InputError where `out` exists and where the peer has no such
    network or preprocessing.
    """
    path = Path(out) if out is not None else _default(model, form)
    check_new(path)
    suffixes = _SUFFIXES.get(form, (path.suffix,))
    if path.suffix not in suffixes:
        raise InputError(f"--out {harmless(path)}: --to {form} writes {' or '.join(suffixes)}")
    net, card = _opened(model, form)
    if form in ("timm", "huggingface"):
        with atomic_folder(path) as folder:
            _write_folder(folder, net, card, form)
        files = tuple(sorted(path.iterdir()))
        return Converted(path, files, _loading(card, form, str(path)))
    if form == "torchvision":
        check_expressible(card.architecture, form)
    if path.suffix == ".pth":
        with atomic_write(path) as file:
            torch.save(_tensors(net), file)
    else:
        save_weights(path, net, card)
    return Converted(path, (path,), _loading(card, form, str(path)))


_SUFFIXES = {"torchvision": (".pth", ".safetensors"), "skipway": (".safetensors",)}
"""Of the forms that are one file."""


def _opened(model: str | os.PathLike[str], form: Form) -> tuple[ResNet, Card]:
    """The network and its card, `without_places`, for a peer at a temperature of 1."""
    why = "ONNX holds no weights that a peer could load; give the run or file it was made from"
    net, card = open_network(torch_source(model, why))
    card = without_places(card)
    if form == "skipway" or card.temperature == 1:
        return net, card
    with torch.no_grad():
        for tensor in net.fc.parameters():
            tensor.div_(card.temperature)
    return net, card.model_copy(update={"temperature": 1.0})


def _default(model: str | os.PathLike[str], form: Form) -> Path:
    """A name in the present folder, after the model's."""
    name = os.fspath(model)
    path = Path(name.split(":", 1)[1] if is_hub_name(name) else name)
    if path.name in (*PEER_FILES, "best.safetensors", "last.safetensors"):
        path = path.absolute().parent
    stem = path.name.removesuffix(path.suffix) if path.is_file() else path.name
    stem = re.sub(r"[^\w.-]", "-", stem) or "model"
    suffix = {"torchvision": "-torchvision.pth", "skipway": ".safetensors"}.get(form, f"-{form}")
    return Path(stem + suffix)


def _tensors(net: ResNet) -> dict[str, Tensor]:
    """The state dict, contiguous and on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}


def _write_folder(folder: Path, net: ResNet, card: Card, form: HubForm) -> None:
    """model.safetensors and what lies beside it."""
    texts = {} if form == "skipway" else peer_files(card, form)
    dialect = "Hugging Face" if form == "huggingface" else "torchvision"
    if form == "timm" and card.architecture.order == "pre":
        dialect = "timm resnetv2"
    state: Mapping[str, Tensor] = spell(dialect, _tensors(net))
    save_weights(folder / "model.safetensors", state, card)
    for name, value in texts.items():
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / name).write_text(text, "utf-8")


def _loading(card: Card, form: Form, place: str, hub: bool = False) -> str:
    """How a form is loaded, in Python; `place` is a path, with `hub` a repository."""
    if form == "torchvision":
        read = (
            f"safetensors.torch.load_file({place!r})"
            if place.endswith(".safetensors")
            else f"torch.load({place!r}, weights_only=True)"
        )
        call = _torchvision_call(card.architecture)
        return f"net = {call}.eval()\nnet.load_state_dict({read})\n{_unkept(card)}"
    if form == "timm":
        source = f"{'hf-hub' if hub else 'local-dir'}:{place}"
        return f"net = timm.create_model({source!r}, pretrained=True).eval()"
    if form == "huggingface":
        return (
            f"net = transformers.AutoModelForImageClassification.from_pretrained({place!r})\n"
            f"processor = transformers.AutoImageProcessor.from_pretrained({place!r})"
        )
    name = f"hf:{place}" if hub else place
    return f"model = skipway.load({name!r})"


def _unkept(card: Card) -> str:
    """What bare weights do not hold and their user needs, as comments of Python."""
    few = 10
    names = ", ".join(repr(harmless(name)) for name in card.classes[:few])
    if len(card.classes) > few:
        names += f", … {harmless(card.classes[-1])!r} ({len(card.classes):,})"
    told = {"preprocess": ("images", card.preprocess.said), "classes": ("classes in order", names)}
    return "\n".join(
        f"# {what}{' (assumed)' if field in card.assumed else ''}: {text}"
        for field, (what, text) in told.items()
    )


def _torchvision_call(arch: Architecture) -> str:
    name, arguments = timm_name(arch)
    if name in torchvision_names() and not arguments:
        return f"torchvision.models.{name}(num_classes={arch.num_classes})"
    block = "BasicBlock" if arch.block == "basic" else "Bottleneck"
    return (
        f"torchvision.models.ResNet(torchvision.models.resnet.{block}, {[*arch.depths]}, "
        f"num_classes={arch.num_classes}, groups={arch.groups}, width_per_group={arch.base_width})"
    )


# --- the hub -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed:
    """What `push` sent."""

    url: str
    """The repository's page."""
    files: tuple[str, ...]
    readme_kept: bool
    """Whether the repository had a README.md, which then stays as it is."""
    removed: tuple[str, ...] = ()
    """What another form had left there."""


def push(
    model: str | os.PathLike[str], name: str, form: HubForm = "skipway", private: bool = False
) -> Pushed:
    """Send a model to ``hf:USER/NAME`` with a model card, in one commit; makes the repository.

    What another form left there, which would say wrong things of this model, goes. The token is
    huggingface_hub's own: HF_TOKEN, or what ``hf auth login`` keeps. Raises InputError where
    there is none, where it does not allow it, and where the hub is not reached.
    """
    repo, revision = repository(name)
    if revision is not None or not name.startswith("hf:"):
        raise InputError(f"{harmless(name)}: push to hf:USER/NAME, without a revision")
    package, api = client("push")
    if not package.get_token():
        raise InputError(
            f"push: no token for {host_of(api)}\nLog in with: hf auth login, or set HF_TOKEN"
        )
    net, card = _opened(model, form)
    with tempfile.TemporaryDirectory(prefix="skipway-") as temporary:
        folder = Path(temporary)
        _write_folder(folder, net, card, form)
        with _explained(repo, host_of(api)):
            url = api.create_repo(repo, private=private, exist_ok=True)
            kept = api.file_exists(repo, "README.md")
            if not kept:
                text = model_card(card, repo, form, package)
                (folder / "README.md").write_text(text, "utf-8")
            files = tuple(sorted(path.name for path in folder.iterdir()))
            there = api.list_repo_files(repo)
            removed = tuple(name for name in _OF_PEERS if name in there and name not in files)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                delete_patterns=list(removed),
                commit_message=f"{harmless(card.model)}, written by Skipway {__version__}",
            )
    return Pushed(str(url), files, kept, removed)


_OF_PEERS = ("config.json", "preprocessor_config.json")
"""What timm and transformers read beside the weights."""


@contextmanager
def _explained(repo: str, host: str) -> Iterator[None]:
    """Errors of huggingface_hub in a line or two."""
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:  # the client raises all kinds of errors
        code = status(error)
        if code == 401:
            text = f"{host} does not know this token (401)\nLog in anew with: hf auth login"
        elif code in (403, 404):
            text = (
                f"this token may not write to {repo} ({code})\nMake one with the right to write at "
                f"https://{host}/settings/tokens, or take a repository of your own."
            )
        elif code:
            text = f"{host} answers {code}; try again later"
        else:
            text = unreachable(error, host)
        raise InputError(f"push: {text}") from None


_SHOWN = {"accuracy": "Accuracy", "top5": "Top-5 accuracy"}
"""The metrics that are shares, with their titles."""


def model_card(card: Card, repo: str, form: HubForm, package: Any) -> str:
    """README.md for a model's repository: YAML front matter for the hub, then what a user needs.

    `package` is huggingface_hub, whose ModelCardData writes the front matter.
    """
    title, arch = repo.split("/")[1], card.architecture
    identifier = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]+", card.licence)
    licence: dict[str, Any] = {"license": card.licence.lower()}
    if card.licence == NOT_STATED:
        licence = {"license": "unknown"}
    elif identifier is None:
        licence = {"license": "other", "license_name": card.licence}
    few = len(card.classes) <= 5  # any answer is among the top 5
    shares = [m for m in card.metrics if m.name in _SHOWN and not (few and m.name == "top5")]
    results = [
        package.EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^\w.-]", "-", _data_name(m)),
            dataset_name=_data_name(m),
            dataset_split=m.split,
            metric_type=m.name,
            metric_name=_SHOWN[m.name],
            metric_value=m.value,
        )
        for m in shares
    ]
    front = package.ModelCardData(
        library_name={"huggingface": "transformers"}.get(form, form),
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "skipway"],
        **licence,
        **({"model_name": title, "eval_results": results} if results else {}),
    )
    height, width = card.preprocess.size
    about = (
        "A residual network for image classification: "
        + (
            f"units of kind {arch.block}, {', '.join(map(str, arch.depths))} in its stages"
            if card.model == "custom"
            else f"`{card.model}`"
        )
        + (f" ({arch.source})" if arch.source else "")
        + f", {len(card.classes):,} classes, images of {height} x {width} px with "
        f"{arch.in_channels} channel{'s' if arch.in_channels > 1 else ''}."
    )
    parts = [f"# {title}", about, "## How to use", _usage(card, repo, form)]
    if shares:
        parts += ["## How good it is", _metrics_table(shares)]
    data = sorted({_data_name(m) for m in card.metrics})
    parts += [
        "## Classes, data and licence",
        _block(json.dumps([*card.classes], ensure_ascii=False)),
        f"Measured on: {', '.join(map(_plain, data)) or 'not stated'}. "
        f"Licence: {_plain(card.licence)}.",
    ]
    if card.assumptions:
        parts.append(f"Assumed, as the file did not say: {_plain(card.assumptions)}.")
    command = card.provenance.get("command")
    if isinstance(command, str) or card.recipe:
        parts.append("## How it was trained")
    if isinstance(command, str):
        parts.append(_block(command))
    if card.recipe:
        parts.append(_block(json.dumps(card.recipe, indent=1, ensure_ascii=False)))
    text = "\n\n".join(parts)
    return f"---\n{front.to_yaml()}\n---\n\n{text}\n"


def _usage(card: Card, repo: str, form: HubForm) -> str:
    ours = f"    skipway predict hf:{repo} image.jpg\n\nor in Python\n\n"
    call = _loading(card, "skipway", repo, hub=True)
    ours += _block(f"import skipway\n{call}\nmodel('image.jpg')")
    if form == "skipway":
        return f"With Skipway:\n\n{ours}"
    imports = {"timm": "import timm", "huggingface": "import transformers"}[form]
    theirs = _block(f"{imports}\n{_loading(card, form, repo, hub=True)}")
    library = {"timm": "timm", "huggingface": "transformers"}[form]
    return f"With {library}:\n\n{theirs}\n\nWith Skipway:\n\n{ours}"


def _metrics_table(metrics: list[Measured]) -> str:
    rows = [
        "| metric | value | 95 % interval | images | split | data |",
        "|---|---|---|---|---|---|",
    ]
    for m in metrics:
        interval = "not measured"
        if m.low is not None and m.high is not None:
            interval = f"{percent(m.low)} to {percent(m.high)}"
        rows.append(
            f"| {_SHOWN[m.name]} | {percent(m.value)} | {interval} | {m.n:,} | {_plain(m.split)} | "
            f"{_plain(_data_name(m))} |"
        )
    return "\n".join(rows)


def _data_name(metric: Measured) -> str:
    """The data set's own name: a path would tell of the folders of who measured."""
    return last_part(metric.data) or "data"


def _plain(text: str) -> str:
    """User text in a line of Markdown, as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", harmless(text))


def _block(text: str) -> str:
    """Verbatim text: indented, as a fence could be closed from inside."""
    return "\n".join("    " + harmless(line) for line in text.splitlines())
