"""scikit-learn's side: features of a model as a transformer, and a training as a classifier.

Both take images where scikit-learn takes tables: one array [N, H, W] or [N, H, W, C], a sequence
or a column of paths, or, where nothing is trained, PIL images, encoded bytes and arrays of any
sizes. The training is that of `training.start`: an array goes to it as an ``.npz``, paths as a CSV.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from skipway.answers import softmax
from skipway.config import FLAGS, from_flags, plain
from skipway.errors import InputError, harmless
from skipway.images import ImageLike

if TYPE_CHECKING:
    from skipway.embedding import Embedder
    from skipway.predictor import Predictor
    from skipway.training import Result

Array = npt.NDArray[Any]


class ArgumentError(InputError, ValueError):
    """An X, a y or a parameter that cannot be used; a ValueError too, as scikit-learn expects."""


_FLAGS = (
    "model",
    "recipe",
    "epochs",
    "batch_size",
    "lr",
    "weights",
    "freeze",
    "val",
    "patience",
    "device",
    "precision",
    "threads",
)
"""Parameters of `SkipwayClassifier` that are flags of ``skipway train``."""
_BATCH = 32
"""Images that are predicted at once, as in `Predictor.stream`."""


def as_images(X: Any) -> Array | list[ImageLike]:
    """What X holds: an array of pixels [N, H, W] or [N, H, W, C] as it is, all else as a list.

    X: such an array, uint8 or uint16; or paths, PIL images or arrays in a sequence, an array [N] or
    [N, 1], or a column of a table. Raises InputError for anything else.
    """
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)) or not hasattr(X, "__len__"):
        raise ArgumentError(
            f"X: one {type(X).__name__}; give a list or an array of images or paths"
        )
    if hasattr(X, "__array__"):
        X = np.asarray(X)
        if X.dtype.kind not in "OUT":
            _check_pixels(X)
            return X
        if X.ndim != 1 and X.shape[1:] != (1,):
            raise ArgumentError(f"X: {X.dtype} of shape {X.shape}; give one path or image a row")
        X = X.reshape(-1)
    images = list(X)
    if not images:
        raise ArgumentError("X: no images")
    for i, image in enumerate(images):
        if not isinstance(image, (str, os.PathLike, bytes, Image.Image, np.ndarray)):
            raise ArgumentError(
                f"X[{i}]: a {type(image).__name__}; give a path, a PIL image or an array of pixels"
            )
    return images


def _check_pixels(X: Array) -> None:
    if X.ndim not in (3, 4) or (X.ndim == 4 and X.shape[3] not in (1, 3, 4)):
        raise ArgumentError(
            f"X: an array of shape {X.shape}; give images, [N, H, W] or [N, H, W, 1|3|4]\n"
            "Rows of a table become images by X.reshape(-1, height, width)."
        )
    if X.dtype not in (np.uint8, np.uint16):
        raise ArgumentError(
            f"X: {X.dtype}; give uint8 or uint16 pixels. Of 0 to 1, they are\n"
            "np.rint(X * 255).astype(np.uint8)"
        )
    if 0 in X.shape:
        raise ArgumentError(f"X: no images in an array of shape {X.shape}")


class SkipwayFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Images to the features of a model, float32 [N, D]: a transformer of scikit-learn.

    model: a run, a weight file, or a name of a shipped model or of a hub's. stage, pooling (None:
    average, or what a model of the task embed has learned its vectors with), gem_p, normalise (to
    length 1), threads, device: as `embedding.load_embedder` takes them. batch_size: images at once.

    The model is opened when it is first used and is no part of a pickle: that holds its name, and
    whoever unpickles it needs the file. Nothing is learned from X, so `transform` needs no `fit`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        stage: str | None = None,
        pooling: str | None = None,
        gem_p: float = 3.0,
        normalise: bool = True,
        batch_size: int = _BATCH,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.stage = stage
        self.pooling = pooling
        self.gem_p = gem_p
        self.normalise = normalise
        self.batch_size = batch_size
        self.threads = threads
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Open the model and look at X. Raises InputError for what cannot be used."""
        as_images(X)
        self._open()
        return self

    def transform(self, X: Any) -> Array:
        """Features, float32 [N, D]; X as `as_images` takes it. Raises InputError, and DecodeError
        for an image that cannot be read."""
        images, embedder = as_images(X), self._open()
        found = list(embedder.stream(images, self.batch_size, skip=False))
        return np.array(found, np.float32)

    @property
    def _n_features_out(self) -> int:
        return self._open().dimensions

    def _open(self) -> Embedder:
        from skipway.embedding import load_embedder

        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise ArgumentError(f"batch_size = {harmless(self.batch_size)}: a whole number above 0")
        asked = self.get_params()
        if getattr(self, "_opened", (None,))[0] != asked:
            embedder = load_embedder(
                self.model,
                stage=self.stage,
                pooling=self.pooling,
                gem_p=self.gem_p,
                normalised=self.normalise,
                threads=self.threads,
                device=self.device,
            )
            self._opened = asked, embedder
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return _without(super().__getstate__(), "_opened")

    def __sklearn_tags__(self) -> Any:
        tags = _of_images(super().__sklearn_tags__())
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags


class SkipwayClassifier(ClassifierMixin, BaseEstimator):
    """A training of `skipway.train` as a classifier of scikit-learn.

    model, recipe, epochs, batch_size, lr, weights, freeze, val, patience, device, precision and
    threads: the flags of ``skipway train``; None leaves each to the recipe, or to what is chosen
    from data and machine; the recipe is then finetune with weights, else modern. settings: other
    keys of `config.RunConfig`, dotted, as ``--set`` takes them. val: by default ``none``, so that
    `fit` learns from every image it is given, as scikit-learn's estimators do; a share, or ``auto``
    for a tenth, is held out to choose the best epoch by. random_state: the seed; equal ones give
    equal bits on equally many threads. out: the folder of the run, with its report; None keeps
    none. It is for one `fit` alone: what exists is not overwritten. quiet: show no progress.
    Predictions run on the cpu where device is None or auto.

    After `fit`: classes_, sorted, as they are in y; card_, the card of the model.
    """

    def __init__(
        self,
        model: str = "auto",
        *,
        recipe: str | None = None,
        epochs: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weights: str | os.PathLike[str] | None = None,
        freeze: int | str | None = None,
        val: float | str = "none",
        patience: int | None = None,
        settings: Mapping[str, Any] | None = None,
        out: str | os.PathLike[str] | None = None,
        random_state: Any = 0,
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        quiet: bool = True,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weights = weights
        self.freeze = freeze
        self.val = val
        self.patience = patience
        self.settings = settings
        self.out = out
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.threads = threads
        self.quiet = quiet

    def fit(self, X: Any, y: Any) -> Self:
        """Train. X: an array of uint8 [N, H, W] or [N, H, W, 1|3], or paths; y: a class each, text
        or numbers, [N]. Raises InputError for what cannot be used."""
        images = as_images(X)
        labels = column_or_1d(y, warn=True)
        check_consistent_length(images, labels)
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        names = _names(classes)
        with tempfile.TemporaryDirectory(prefix="skipway-") as folder:
            if isinstance(images, np.ndarray):
                data, order = _array_file(Path(folder), images, codes, names), names
            else:
                data, order = _table(Path(folder), images, codes, names), sorted(names)
            run = Path(folder, "run") if self.out is None else Path(self.out)
            result = self._train(data, run)
            self._file = result.weights.read_bytes()
            self._loaded = self._load(result.weights)
        self.card_ = self._loaded.card
        self.classes_ = classes
        self._columns = [order.index(name) for name in names]
        return self

    def _train(self, data: Path, run: Path) -> Result:
        from skipway import training

        progress = training.TrainingProgress(self.quiet)
        try:
            result = training.start(os.fspath(data), self._given(), run, progress)
        except training.Interrupted as stopped:
            # An exception like others would let a search go on with its next fit.
            number = stopped.exit_code - 128
            raise KeyboardInterrupt(f"signal {number} stopped the training") from None
        if self.out is not None:
            from skipway.report import write_report

            write_report(run)
        return result

    def _given(self) -> dict[str, Any]:
        """Parameters and settings as dotted keys."""
        flags = {name: plain(getattr(self, name)) for name in _FLAGS}
        flags["seed"] = plain(self.random_state)
        if not isinstance(flags["seed"], int):
            flags["seed"] = int(check_random_state(self.random_state).randint(2**31 - 1))
        given = from_flags(flags)
        settings = {key: plain(value) for key, value in (self.settings or {}).items()}
        for name in flags:
            if FLAGS[name] in settings.keys() & given.keys():
                parameter = "random_state" if name == "seed" else name
                raise ArgumentError(
                    f"settings: {FLAGS[name]} is the parameter {parameter}; give it there alone"
                )
        return settings | given

    def predict_proba(self, X: Any) -> Array:
        """The probability of each of classes_, float64 [N, K]; X as `as_images` takes it.

        Raises DecodeError for an image that cannot be read.
        """
        check_is_fitted(self)
        images, predictor = as_images(X), self._open()
        prepare, logits = predictor.card.preprocess, []
        for low in range(0, len(images), _BATCH):
            part = [prepare(image) for image in images[low : low + _BATCH]]
            logits.append(predictor.run(np.stack(part)))
        return softmax(predictor.calibrated(np.concatenate(logits)))[:, self._columns]

    def predict(self, X: Any) -> Array:
        """The most probable class of each image, as in y: [N]; X as of `predict_proba`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _open(self) -> Predictor:
        """The model; after unpickling, made anew from its bytes."""
        if not hasattr(self, "_loaded"):
            with tempfile.TemporaryDirectory(prefix="skipway-") as folder:
                file = Path(folder, "best.safetensors")
                file.write_bytes(self._file)
                self._loaded = self._load(file)
        return self._loaded

    def _load(self, file: Path) -> Predictor:
        from skipway.predictor import load

        device = "cpu" if self.device in (None, "auto") else self.device
        return load(file, self.threads, device)

    def __getstate__(self) -> dict[str, Any]:
        return _without(super().__getstate__(), "_loaded")

    def __sklearn_tags__(self) -> Any:
        return _of_images(super().__sklearn_tags__())


def _without(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The state of an estimator for a pickle, which networks are no part of."""
    return {key: value for key, value in state.items() if key != name}


def _of_images(tags: Any) -> Any:
    """scikit-learn's tags of an estimator, for one that takes images."""
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True
    tags.input_tags.string = True
    return tags


def _names(classes: Array) -> list[str]:
    """What a card calls the classes. Raises InputError where they cannot be told apart by it."""
    names = [str(name).strip() for name in classes.tolist()]
    if len(names) < 2:
        raise ArgumentError(f"y: one class only ({harmless(names[0])!r}); a classifier needs two")
    if not all(names):
        raise ArgumentError("y: a class without a name")
    if len(set(names)) < len(names):
        raise ArgumentError("y: names of classes that differ in their blanks only; rename them")
    return names


def _array_file(folder: Path, images: Array, codes: Array, names: Sequence[str]) -> Path:
    """Pixels and labels as an ``.npz``, in which the classes are in the order of `names`."""
    if images.dtype != np.uint8 or images.shape[3:] == (4,):
        raise ArgumentError(
            f"X: {images.dtype} of shape {images.shape}; training takes arrays of uint8, "
            "[N, H, W] or [N, H, W, 3]\nGive other images as paths of files."
        )
    file = folder / "images.npz"
    np.savez(file, train_images=images, train_labels=codes, class_names=np.array(names))
    return file


def _table(folder: Path, images: Sequence[ImageLike], codes: Array, names: Sequence[str]) -> Path:
    """Paths and labels as a CSV, in which the classes are in alphabetical order."""
    first: dict[str, int] = {}
    for i, path in enumerate(images):
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentError(
                f"X[{i}]: a {type(path).__name__}; training takes paths, or one array of all images"
            )
        place = os.path.abspath(path)
        if not os.path.isfile(place):
            raise ArgumentError(f"X[{i}]: {harmless(path)}: no such file")
        if first.setdefault(place, i) != i:
            raise ArgumentError(
                f"X[{i}]: {harmless(path)} again, first at X[{first[place]}]; "
                "training takes a file once"
            )
    file = folder / "images.csv"
    rows = ((place, names[code], "train") for place, code in zip(first, codes, strict=True))
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([("path", "label", "split"), *rows])
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{harmless(error.object)[:200]}: a name that is not UTF-8") from None
    return file
