"""The estimators: scikit-learn's own checks, and the product's training to the bit."""

from __future__ import annotations

import pickle
import re
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

import skipway
from bits import same
from commands import draw
from skipway import training
from skipway.architecture import architecture
from skipway.card import Card
from skipway.embedders import build_embedder
from skipway.embedding import load_embedder
from skipway.errors import InputError
from skipway.estimators import ArgumentError, SkipwayClassifier, SkipwayFeatures
from skipway.heads import EmbedderConfig
from skipway.images import DecodeError, Preprocess
from skipway.weights import load_model, save_weights
from writers import table

Array = npt.NDArray[Any]
GUIDE = Path(__file__).parents[1] / "docs" / "scikit-learn.md"
TINY = {"model.architecture.depths": [1, 1, 1], "model.architecture.width": 0.25}
FLAGS: dict[str, Any] = {"model": "resnet20", "epochs": 1, "batch_size": 16, "threads": 1}


def classifier(**changes: Any) -> SkipwayClassifier:
    return SkipwayClassifier(**FLAGS | {"settings": TINY} | changes)


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    """uint8 [120, 8, 8], and the digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images[:120] * (255 / 16)).astype(np.uint8), found.target[:120]


@pytest.fixture(scope="module")
def run(digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits, made by the classifier."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    classifier(out=out).fit(*digits)
    return out


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Images of three classes, in the order of no sort."""
    found = [str(p) for p in draw(tmp_path / "images", ["ant", "bee", "cat"]).rglob("*.png")]
    return sorted(found, key=lambda p: p[::-1])


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def folders(paths: Sequence[str]) -> list[str]:
    """The class of each image."""
    return [Path(p).parent.name for p in paths]


def predicted(run: Path, images: Sequence[Any]) -> Array:
    """Probabilities of the card's classes in its order, as `skipway.load` gives them."""
    predictor = skipway.load(run, threads=1)
    rows = [
        {score.label: score.score for score in p.predictions}
        for p in predictor.stream(images, top=len(predictor.classes))
    ]
    return np.array([[row[name] for name in predictor.classes] for row in rows])


# The classifier is the product's training


def test_arrays_are_trained_on_as_train_does(digits: tuple[Array, Array], tmp_path: Path) -> None:
    images, labels = digits
    np.savez(tmp_path / "digits.npz", train_images=images, train_labels=labels)
    result = skipway.train(
        tmp_path / "digits.npz",
        out=tmp_path / "run",
        val="none",
        seed=7,
        quiet=True,
        settings=TINY,
        **FLAGS,
    )
    trained = classifier(random_state=7).fit(images, labels)
    assert trained.classes_.tolist() == list(range(10))
    assert np.array_equal(trained.predict_proba(images), predicted(result.run, list(images)))


def test_paths_are_trained_on_as_train_does(paths: list[str], tmp_path: Path) -> None:
    rows = zip(paths, folders(paths), ["train"] * len(paths), strict=True)
    data = table(tmp_path / "list.csv", rows, ("path", "label", "split"))
    plain = FLAGS | {"settings": TINY, "val": "none", "quiet": True}
    result = skipway.train(data, out=tmp_path / "run", **plain)
    trained = classifier(out=tmp_path / "ours").fit(paths, folders(paths))
    weights = [load_file(r / "best.safetensors") for r in (result.run, tmp_path / "ours")]
    assert same(*weights)
    assert np.array_equal(trained.predict_proba(paths), predicted(result.run, paths))
    assert trained.card_.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    "names",
    [
        ["ant", "Bee", "ärger"],
        [10, -2, 3],
        [1.0, 2.0, 10.0],
        np.array(["z", "a", "m"], object),
    ],
    ids=["text", "numbers", "floats", "objects"],
)
def test_columns_are_in_the_order_of_classes(names: Any, paths: list[str]) -> None:
    """Numbers are sorted as such, where the data's classes are sorted as text."""
    labels = np.array(names)[[("ant", "bee", "cat").index(f) for f in folders(paths)]]
    pixels = np.stack([np.asarray(Image.open(p)) for p in paths])
    strong = classifier(epochs=8, batch_size=6, lr=0.1)
    for X in (paths, pixels):
        trained = clone(strong).fit(X, labels)
        assert trained.classes_.tolist() == sorted(names)
        assert trained.predict(X).dtype == labels.dtype
        assert trained.score(X, labels) == 1
        probabilities = trained.predict_proba(X)
        assert probabilities.sum(axis=1) == pytest.approx(1)
        best = trained.classes_[probabilities.argmax(axis=1)]
        assert best.tolist() == labels.tolist()


def test_the_seed_decides_every_bit(digits: tuple[Array, Array]) -> None:
    images, labels = digits[0][:40], digits[1][:40]

    def weights(seed: Any) -> bytes:
        fitted = classifier(random_state=seed).fit(images, labels)
        return fitted.predict_proba(images).tobytes()

    assert weights(3) == weights(np.int64(3)) != weights(4)
    drawn = [weights(np.random.RandomState(i)) for i in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    np.random.seed(5)
    first = weights(None)
    assert first != weights(None)
    np.random.seed(5)
    assert first == weights(None)


def test_a_share_can_be_held_out(digits: tuple[Array, Array], tmp_path: Path) -> None:
    classifier(val=0.25, out=tmp_path / "run").fit(*digits)
    splits = training.run.read_record(tmp_path / "run")["data"]["splits"]
    assert {name: split["n"] for name, split in splits.items()} == {"train": 91, "val": 29}


def test_the_run_is_kept_once(digits: tuple[Array, Array], scratch: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    fitted = classifier(out=out).fit(*digits)
    assert (out / "report.html").exists()
    assert np.array_equal(fitted.predict_proba(digits[0]), predicted(out, list(digits[0])))
    with pytest.raises(InputError, match="exists and is not empty"):
        fitted.fit(*digits)
    assert list(scratch.iterdir()) == []


def test_nothing_else_is_kept(
    digits: tuple[Array, Array], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    fitted = classifier().fit(*digits)
    again = pickle.loads(pickle.dumps(fitted))
    again.predict(digits[0])
    with pytest.raises(InputError, match="optim"):
        classifier(lr=-1.0).fit(*digits)
    assert list(scratch.iterdir()) == []


def test_a_stop_ends_a_search_too(
    digits: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise training.Interrupted(Path("run"), signal.SIGINT)

    monkeypatch.setattr(training, "start", stopped)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(classifier(), *digits, cv=2)


# scikit-learn's tools


def test_a_pickle_predicts_the_same(digits: tuple[Array, Array]) -> None:
    fitted = classifier().fit(*digits)
    again = pickle.loads(pickle.dumps(fitted))
    assert not any(isinstance(v, torch.nn.Module) for v in vars(again).values())
    assert np.array_equal(again.predict_proba(digits[0]), fitted.predict_proba(digits[0]))
    with pytest.raises(NotFittedError):
        clone(fitted).predict(digits[0])


def test_cross_validation_is_its_splits(digits: tuple[Array, Array]) -> None:
    images, labels = digits
    folds = StratifiedKFold(2)
    by_hand = [
        float((classifier().fit(images[a], labels[a]).predict(images[b]) == labels[b]).mean())
        for a, b in folds.split(images, labels)
    ]
    assert cross_val_score(classifier(), images, labels, cv=folds).tolist() == by_hand


@pytest.mark.parametrize("form", [list, np.array, lambda p: np.array(p, object)[:, None]])
def test_cross_validation_over_paths(form: Any, paths: list[str]) -> None:
    scores = cross_val_score(classifier(), form(paths), folders(paths), cv=2, error_score="raise")
    assert scores.shape == (2,)


def test_a_grid_over_parameters_and_settings(digits: tuple[Array, Array]) -> None:
    grid = {"lr": [1e-6, 0.1], "settings": [TINY, TINY | {"augment.pad_crop": 1}]}
    search = GridSearchCV(classifier(epochs=6), grid, cv=2, error_score="raise").fit(*digits)
    scores = dict(
        zip(
            [(p["lr"], len(p["settings"])) for p in search.cv_results_["params"]],
            search.cv_results_["mean_test_score"],
            strict=True,
        )
    )
    assert search.best_params_["lr"] == 0.1
    assert scores[0.1, 2] != scores[0.1, 3]
    assert search.predict(digits[0]).shape == (120,)


def test_in_a_pipeline(digits: tuple[Array, Array]) -> None:
    images, labels = digits
    inverted = Pipeline(
        [("invert", FunctionTransformer(lambda x: 255 - x)), ("net", classifier())]
    ).fit(images, labels)
    alone = classifier().fit(255 - images, labels)
    assert np.array_equal(inverted.predict_proba(images), alone.predict_proba(255 - images))


def test_searches_may_draw_numbers_of_numpy(digits: tuple[Array, Array]) -> None:
    drawn = classifier(
        epochs=np.int64(1),
        batch_size=np.int64(16),
        lr=np.float32(0.125),
        settings=TINY | {"augment.pad_crop": np.int64(1)},
    ).fit(*digits)
    plain = classifier(lr=0.125, settings=TINY | {"augment.pad_crop": 1}).fit(*digits)
    assert np.array_equal(drawn.predict_proba(digits[0]), plain.predict_proba(digits[0]))


# What cannot be used


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (np.zeros((4, 64), np.uint8), r"shape \(4, 64\).*\n.*reshape\(-1, height, width\)"),
        (np.zeros((4, 8, 8)), r"float64; give uint8 or uint16.*\nnp\.rint\(X \* 255\)"),
        (np.zeros((4, 8, 8, 2), np.uint8), r"shape \(4, 8, 8, 2\)"),
        (np.zeros((0, 8, 8), np.uint8), "no images"),
        ([], "no images"),
        ("a.png", "one str"),
        (Path("a.png"), "one PosixPath"),
        (Image.new("L", (8, 8)), "one Image"),
        (iter(["a.png"]), "one list_iterator"),
        (["a.png", 3], r"X\[1\]: a int"),
        (np.array([["a", "b"], ["c", "d"]]), r"shape \(2, 2\)"),
    ],
)
def test_what_holds_no_images_is_refused(X: Any, said: str, run: Path) -> None:
    for estimator in (classifier(), SkipwayFeatures(run)):
        with pytest.raises(InputError, match=said) as error:
            estimator.fit(X, ["a", "b"])
        assert isinstance(error.value, ValueError)
        assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("changes", "y", "said"),
    [
        ({}, [1] * 120, "y: one class only"),
        ({}, ["a ", "a"] * 60, "blanks only"),
        ({}, [" ", "a"] * 60, "without a name"),
        ({"settings": {"optim.lr": 0.1}, "lr": 0.2}, None, "optim.lr is the parameter lr"),
        ({"settings": {"seed": 1}}, None, "seed is the parameter random_state"),
        ({"settings": {"optim.lrr": 1}}, None, "unknown key"),
        ({"epochs": "many"}, None, "--epochs many: give a number"),
        ({"random_state": -1}, None, "seed = -1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    changes: dict[str, Any], y: Any, said: str, digits: tuple[Array, Array]
) -> None:
    images, labels = digits
    with pytest.raises(InputError, match=said):
        classifier(**changes).fit(images, labels if y is None else y)


def test_images_that_training_does_not_take(paths: list[str], tmp_path: Path) -> None:
    y = folders(paths)
    wide = np.zeros((len(y), 8, 8), np.uint16)
    for X, said in (
        (wide, "X: uint16"),
        (np.zeros((len(y), 8, 8, 4), np.uint8), r"X: uint8 of shape \(18, 8, 8, 4\)"),
        ([Image.open(p) for p in paths], r"X\[0\]: a PngImageFile"),
        ([*paths[:-1], paths[0]], r"X\[17\].*again, first at X\[0\]"),
        ([*paths[:-1], str(tmp_path / "no\x1b.png")], r"X\[17\]: .*no\\x1b.png: no such file"),
    ):
        with pytest.raises(ArgumentError, match=said):
            classifier().fit(X, y)
    with pytest.raises(ValueError, match="inconsistent"):
        classifier().fit(paths, y[:-1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match=re.escape(str(broken))):
        classifier().fit([*paths[:-1], str(broken)], y)
    fitted = classifier().fit(paths, y)
    with pytest.raises(DecodeError, match=re.escape(str(broken))):
        fitted.predict([broken])


# Features


def by_hand(run: Path, images: Sequence[Array]) -> Array:
    """The average-pooled last stage, of length 1."""
    net, card, _ = load_model(run / "best.safetensors")
    assert card is not None
    with torch.inference_mode():
        features = net.embed(torch.from_numpy(np.stack([card.preprocess(i) for i in images])))
    return torch.nn.functional.normalize(features).numpy()


def test_features_are_the_network_s(run: Path, digits: tuple[Array, Array]) -> None:
    features = SkipwayFeatures(run, batch_size=50).fit_transform(digits[0])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, by_hand(run, list(digits[0])), atol=1e-6)


def test_features_are_the_embedder_s(run: Path, digits: tuple[Array, Array]) -> None:
    options: dict[str, Any] = {"stage": "c4", "pooling": "gem", "gem_p": 2.0}
    ours = SkipwayFeatures(run, **options, normalise=False).transform(digits[0])
    embedder = load_embedder(run, **options, normalised=False)
    prepared = np.stack([embedder.card.preprocess(i) for i in digits[0]])
    np.testing.assert_allclose(ours, embedder.run(prepared), rtol=1e-5, atol=1e-6)
    assert ours.shape[1] == embedder.dimensions
    assert not np.allclose(np.linalg.norm(ours, axis=1), 1)


def test_a_model_for_vectors_gives_those_it_has_learned(
    digits: tuple[Array, Array], tmp_path: Path
) -> None:
    """The GeM of its last stage through its layer, of length 1, with no parameter given."""
    torch.manual_seed(0)
    arch = architecture(
        "resnet20", depths=(1, 1, 1), width=0.5, in_channels=1, num_classes=3, input_size=8
    )
    config = EmbedderConfig(loss="triplet", dim=5, pooling="gem")
    net, file = build_embedder(arch, config, 3).eval(), tmp_path / "vectors.safetensors"
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.25,))
    card = Card(
        task="embed", model="custom", architecture=arch, classes=("a", "b", "c"),
        embedder=config, preprocess=preprocess,
    )  # fmt: skip
    save_weights(file, net, card)
    with torch.inference_mode():
        *_, last = net.body.features(
            torch.from_numpy(np.stack([preprocess(i) for i in digits[0]]))
        ).values()
        pooled = last.double().pow(3).mean((2, 3)).pow(1 / 3).float()
        layer = net.embedding
        expected = torch.nn.functional.normalize(pooled @ layer.weight.T + layer.bias)
    transformer = SkipwayFeatures(file)
    np.testing.assert_allclose(transformer.fit_transform(digits[0]), expected, atol=1e-5)
    assert len(transformer.get_feature_names_out()) == 5
    stage = transformer.set_params(stage="c4", pooling="gem").transform(digits[0])
    np.testing.assert_allclose(stage, torch.nn.functional.normalize(pooled), atol=1e-5)
    with pytest.raises(InputError, match="has its own, gem"):
        transformer.set_params(stage=None).transform(digits[0])


def test_images_of_every_kind_have_the_same_features(run: Path, paths: list[str]) -> None:
    transformer = SkipwayFeatures(run, batch_size=5).fit(paths)
    expected = transformer.transform(paths)
    pixels = [np.asarray(Image.open(p)) for p in paths]
    kinds: list[Any] = [
        [Path(p) for p in paths],
        np.array(paths),
        np.array(paths, object)[:, None],
        [Path(p).read_bytes() for p in paths],
        [Image.open(p) for p in paths],
        pixels,
        np.stack(pixels),
    ]
    for kind in kinds:
        assert np.array_equal(transformer.transform(kind), expected)
    larger = Image.open(paths[0]).resize((50, 31))
    mixed = transformer.transform([*pixels[:4], larger])  # of other sizes in one batch
    np.testing.assert_allclose(mixed[:4], expected[:4], atol=1e-6)
    assert mixed.shape[0] == 5


def test_a_transformer_carries_no_network(run: Path, digits: tuple[Array, Array]) -> None:
    fresh, fitted = SkipwayFeatures(run), SkipwayFeatures(run).fit(digits[0])
    assert len(pickle.dumps(fitted)) < len(pickle.dumps(fresh)) + 100
    expected = fitted.transform(digits[0])
    for other in (fresh, clone(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.transform(digits[0]), expected)
    wider = fitted.set_params(stage="c3", normalise=False).transform(digits[0])
    assert wider.shape[1] < expected.shape[1]


def test_features_have_names(run: Path) -> None:
    names = SkipwayFeatures(run).get_feature_names_out()
    width = load_embedder(run).dimensions
    assert names.tolist() == [f"skipwayfeatures{i}" for i in range(width)]


def test_features_in_a_pipeline(run: Path, digits: tuple[Array, Array]) -> None:
    images, labels = digits
    chain = make_pipeline(SkipwayFeatures(run), LogisticRegression(C=100))
    alone = LogisticRegression(C=100).fit(by_hand(run, list(images)), labels)
    assert chain.fit(images, labels).score(images, labels) == pytest.approx(
        alone.score(by_hand(run, list(images)), labels), abs=0.02
    )
    grid = {"skipwayfeatures__stage": ["c2", None], "skipwayfeatures__pooling": ["average", "gem"]}
    search = GridSearchCV(chain, grid, cv=2, error_score="raise").fit(images, labels)
    assert len(search.cv_results_["params"]) == 4


def test_paths_are_a_column_of_a_table(run: Path, paths: list[str]) -> None:
    rows = np.array([[p, i] for i, p in enumerate(paths)], object)
    columns = ColumnTransformer(
        [("features", SkipwayFeatures(run), [0])], remainder="passthrough", sparse_threshold=0
    )
    found = columns.fit_transform(rows)
    assert np.array_equal(found[:, :-1].astype(np.float32), SkipwayFeatures(run).transform(paths))
    assert found[:, -1].tolist() == list(range(len(paths)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"model": "nowhere"}, "nowhere: no such file"), ({"batch_size": 0}, "batch_size = 0")],
)
def test_parameters_are_checked_when_they_are_used(
    changes: dict[str, Any], said: str, digits: tuple[Array, Array], run: Path
) -> None:
    transformer = SkipwayFeatures(**{"model": run} | changes)
    for use in (transformer.fit, transformer.transform):
        with pytest.raises(InputError, match=said):
            use(digits[0])


def test_what_cannot_be_decoded_is_named(run: Path, tmp_path: Path, paths: list[str]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DecodeError, match=re.escape(str(broken))):
        SkipwayFeatures(run).transform([*paths, broken])


# scikit-learn's own checks. They make tables, of which the estimators here make images: every row
# 8 x 8 pixels. All but what two-dimensional X is refused with is the product's.


def drawn(rows: Array) -> Array:
    """A table [N, D] as images, uint8 [N, 8, 8], in which each column is a block of grey."""
    levels = np.clip(np.rint(128 + 25 * rows.astype(np.float64)), 0, 255).astype(np.uint8)
    columns = np.arange(64) * rows.shape[1] // 64
    return levels[:, columns].reshape(-1, 8, 8)


def of_tables(tags: Any) -> Any:
    tags.input_tags.two_d_array = True
    return tags


class ClassifierOfTables(SkipwayClassifier):
    def fit(self, X: Any, y: Any) -> Any:
        X, y = validate_data(self, X, y)
        return super().fit(drawn(X), y)

    def predict_proba(self, X: Any) -> Array:
        check_is_fitted(self)
        return super().predict_proba(drawn(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        return of_tables(super().__sklearn_tags__())


class FeaturesOfTables(SkipwayFeatures):
    def fit(self, X: Any, y: Any = None) -> Any:
        return super().fit(drawn(validate_data(self, X)))

    def transform(self, X: Any) -> Array:
        return super().transform(drawn(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        return of_tables(super().__sklearn_tags__())


@pytest.mark.slow
@parametrize_with_checks(
    [
        ClassifierOfTables(**FLAGS | {"epochs": 3, "settings": TINY}),
        FeaturesOfTables("cifar10-resnet20"),
    ]
)
def test_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# The guide, executed at the size of a test


@pytest.mark.slow
def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: tuple[Array, Array]
) -> None:
    import sklearn.datasets

    few = sklearn.datasets.load_digits()
    few.images, few.target = few.images[:60], few.target[:60]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    monkeypatch.chdir(tmp_path)
    for path in draw(tmp_path / "photos", ["ant", "bee"], n=5).rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks).replace("torchvision:resnet50", "cifar10-resnet20")
    assert code.count("epochs=20") == 3
    names: dict[str, Any] = {"FLAGS": FLAGS}
    exec(code.replace("epochs=20", "**FLAGS"), names)
    assert names["scores"].shape == (3,)
    assert len(names["search"].cv_results_["params"]) == 4
    assert len(names["labels"]) == 10
    assert Path("runs/digits/report.html").exists()
    assert skipway.load("runs/digits").classes == tuple("0123456789")
