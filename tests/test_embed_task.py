"""Metric learning: losses against their formulas, pooling, batches of few classes, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from skipway.architecture import Architecture, architecture
from skipway.config import AugmentConfig
from skipway.data import Key, Split
from skipway.data.feed import Batch, DecodedFeed, Part, ResidentFeed, batches, grouped
from skipway.data.split import ArrayReader
from skipway.embedders import EmbeddingNet, GeM, build_embedder, generalised_mean
from skipway.heads import EmbedderConfig
from skipway.images import Preprocess
from skipway.retrieval import retrieved
from skipway.tasks import Evaluator, ImageTask
from skipway.tasks.embed import KS, Embed, RetrievalEvaluator, arcface, batch_hard, proxy_anchor

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
LOSSES = ("proxy-anchor", "arcface", "triplet")
LABELS = torch.tensor([0, 2, 2, 0, 1, 2, 4])


def tiny(classes: int = 5) -> Architecture:
    return architecture("resnet20", depths=(1, 1, 1), width=0.5, num_classes=classes, input_size=16)


def config(**given: Any) -> EmbedderConfig:
    return EmbedderConfig.model_validate(given)


def unit(n: int, d: int = 6, seed: int = 0) -> Tensor:
    vectors = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors)


def test_it_is_a_task_like_any_other() -> None:
    asked: ImageTask = Embed(PREPROCESS, AugmentConfig(), config())
    scores: Evaluator = asked.evaluator()
    assert list(scores.metrics()) == [*(f"recall_at_{k}" for k in KS), "map_at_r"]


# Losses, each against its formula in plain loops


def triplet_in_loops(vectors: list[list[float]], labels: list[int], margin: float) -> float:
    terms = []
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positive = [math.dist(vectors[i], vectors[j]) for j in others if labels[j] == own]
        negative = [math.dist(vectors[i], vectors[j]) for j in others if labels[j] != own]
        if positive and negative:
            terms.append(max(0.0, margin + max(positive) - min(negative)))
    return sum(terms) / len(terms) if terms else 0.0


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def anchor_in_loops(
    vectors: list[list[float]], proxies: list[list[float]], labels: list[int],
    margin: float, scale: float,
) -> float:  # fmt: skip
    pull, push, there = 0.0, 0.0, set(labels)
    for k, proxy in enumerate(proxies):
        cosines = [(dot(v, proxy), label == k) for v, label in zip(vectors, labels, strict=True)]
        push += math.log(1 + sum(math.exp(scale * (s + margin)) for s, own in cosines if not own))
        if k in there:
            pull += math.log(1 + sum(math.exp(-scale * (s - margin)) for s, own in cosines if own))
    return pull / len(there) + push / len(proxies)


def arcface_in_loops(
    vectors: list[list[float]], proxies: list[list[float]], labels: list[int],
    margin: float, scale: float,
) -> float:  # fmt: skip
    total = 0.0
    for v, label in zip(vectors, labels, strict=True):
        logits = []
        for k, proxy in enumerate(proxies):
            angle = math.acos(dot(v, proxy))
            if k != label:
                logits.append(scale * math.cos(angle))
            elif angle + margin < math.pi:
                logits.append(scale * math.cos(angle + margin))
            else:
                logits.append(scale * (math.cos(angle) - margin * math.sin(margin)))
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.0, 0.2, 5.0])
@pytest.mark.parametrize("labels", [LABELS, LABELS * 0, torch.arange(7), torch.arange(7) % 2])
def test_batch_hard_by_its_formula(labels: Tensor, margin: float) -> None:
    vectors = unit(7)
    expected = triplet_in_loops(vectors.tolist(), labels.tolist(), margin)
    assert float(batch_hard(vectors, labels, margin)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("margin", "scale"), [(0.1, 32.0), (0.0, 1.0), (0.4, 8.0)])
@pytest.mark.parametrize(
    ("loss", "in_loops"),
    [(proxy_anchor, anchor_in_loops), (arcface, arcface_in_loops)],
    ids=["proxy-anchor", "arcface"],
)
def test_losses_against_directions_by_their_formulas(
    loss: Callable[..., Tensor], in_loops: Callable[..., float], margin: float, scale: float
) -> None:
    vectors, directions = unit(7), unit(5, seed=1)
    vectors[3] = -directions[0]  # past the angle at which the cosine would rise again
    vectors[3] += 0.05 * unit(1, seed=2)[0]
    vectors = torch.nn.functional.normalize(vectors)
    expected = in_loops(vectors.tolist(), directions.tolist(), LABELS.tolist(), margin, scale)
    found = float(loss(vectors, directions, LABELS, margin, scale))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_those_of_differences(kind: str) -> None:
    vectors, directions = unit(7).requires_grad_(), unit(5, seed=1).requires_grad_()
    c = config(loss=kind, scale=4.0, margin=0.3)
    if kind == "triplet":
        assert torch.autograd.gradcheck(lambda v: batch_hard(v, LABELS, c.margin), (vectors,))
        return
    loss = proxy_anchor if kind == "proxy-anchor" else arcface
    assert torch.autograd.gradcheck(
        lambda v, d: loss(v, d, LABELS, c.margin, c.scale), (vectors, directions)
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("where", ["own", "opposite", "alike", "alone"])
def test_gradients_are_finite_where_they_might_not_be(kind: str, where: str) -> None:
    """Vectors on their direction or against it, all of them equal, one class in the batch."""
    labels = LABELS * 0 + 1 if where == "alone" else LABELS
    directions = torch.eye(5, 6).requires_grad_()  # cosines of exactly 1, 0 and -1
    sign = -1 if where == "opposite" else 1
    start = sign * directions.detach()[labels]
    if where == "alike":
        start = directions.detach()[:1].repeat(7, 1)
    vectors = start.clone().requires_grad_()
    c = config(loss=kind)
    if kind == "triplet":
        loss = batch_hard(vectors, labels, c.margin)
    else:
        against = proxy_anchor if kind == "proxy-anchor" else arcface
        loss = against(vectors, directions, labels, c.margin, c.scale)
    assert math.isfinite(loss.item())
    loss.backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("kind", ["proxy-anchor", "arcface"])
def test_a_class_that_is_not_in_the_batch_is_pushed_away(kind: str) -> None:
    directions = unit(5, seed=1).requires_grad_()
    vectors = unit(7)
    against = proxy_anchor if kind == "proxy-anchor" else arcface
    against(vectors, directions, LABELS, 0.1, 4.0).backward()
    assert directions.grad is not None
    step = directions.detach()[3] - 1e-3 * directions.grad[3]
    before, after = vectors @ directions.detach()[3], vectors @ step
    assert after.mean() < before.mean()


def test_what_is_not_given_is_the_papers() -> None:
    usual = {kind: config(loss=kind) for kind in LOSSES}
    assert (usual["proxy-anchor"].margin, usual["proxy-anchor"].scale) == (0.1, 32)
    assert (usual["arcface"].margin, usual["arcface"].scale) == (0.5, 64)
    assert (usual["triplet"].margin, usual["triplet"].per_class) == (0.2, 4)
    assert EmbedderConfig() == config(loss="proxy-anchor", dim=128, per_class=0)
    assert config(loss="arcface", margin=0.3).margin == 0.3
    for wrong in (
        {"loss": "triplet", "per_class": 0},
        {"per_class": 1},
        {"dim": 0},
        {"gem_p": 0.5},
        {"loss": "arcface", "margin": 3.2},
        {"loss": "softmax"},
    ):
        with pytest.raises(ValidationError):
            config(**wrong)


# Pooling and the network


def gem_in_loops(x: np.ndarray, p: float) -> np.ndarray:
    return np.array([[stats.pmean(channel.ravel(), p) for channel in image] for image in x])


@pytest.mark.parametrize("p", [1.0, 1.7, 3.0, 12.0])
def test_the_generalised_mean_is_scipys(p: float) -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5)) + 0.01
    here = generalised_mean(torch.from_numpy(x), torch.tensor([p], dtype=torch.float64))
    np.testing.assert_allclose(here.numpy(), gem_in_loops(x, p), rtol=1e-12)
    torch.testing.assert_close(here, generalised_mean(torch.from_numpy(x), p))


def test_the_generalised_mean_and_its_power_have_right_gradients() -> None:
    x = torch.rand(2, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = torch.tensor([2.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(generalised_mean, ((x + 0.1).requires_grad_(), power))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_generalised_mean_neither_overflows_nor_divides_by_nothing(scale: float) -> None:
    """A channel that is 0 everywhere, one that is 0 at most pixels, and one that is not."""
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    x[:, 1, 1:] = 0
    x = (x * scale).requires_grad_()
    pool = GeM(3.0)
    pooled = pool(x)
    (pooled / scale).sum().backward()
    assert (pooled[:, 0] == 0).all()
    assert (pooled[:, 1:] > 0).all()
    assert x.grad is not None
    assert pool.p.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(pool.p.grad).all()


def test_a_learned_power_never_falls_below_the_average() -> None:
    pool = GeM(3.0)
    x = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        pool.p.fill_(-7.0)
    torch.testing.assert_close(pool(x), x.mean((2, 3)))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("pooling", ["average", "gem"])
def test_the_network_gives_unit_vectors(kind: str, pooling: str) -> None:
    torch.manual_seed(0)
    net = build_embedder(tiny(), config(loss=kind, pooling=pooling, dim=7), 5)
    x = torch.randn(4, 3, 16, 16)
    outputs = net(x)
    assert set(outputs) == ({"vectors"} if kind == "triplet" else {"vectors", "directions"})
    for name, rows in (("vectors", 4), ("directions", 5)):
        if name in outputs:
            assert outputs[name].shape == (rows, 7)
            torch.testing.assert_close(outputs[name].norm(dim=1), torch.ones(rows))
    vectors = net.eval()(x)
    last = net.body.features(x)["c4"].detach().numpy()
    pooled = last.mean((2, 3))
    if pooling == "gem":
        pooled = np.stack([[stats.pmean(c.ravel() + 1e-12, 3) for c in one] for one in last])
    by_hand = pooled @ net.embedding.weight.detach().numpy().T + net.embedding.bias.detach().numpy()
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.detach().numpy(), by_hand, atol=1e-5)
    assert not hasattr(net.body, "fc")


@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_in_bf16_works_out_cosines_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    asked = Embed(PREPROCESS, AugmentConfig(), config(loss=kind, pooling="gem", per_class=2))
    net = asked.build(tiny())
    batch = Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 4, np.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(batch.images)
        terms = asked.losses(net, batch)
    assert {value.dtype for value in outputs.values()} == {torch.float32}
    torch.testing.assert_close(outputs["vectors"].norm(dim=1), torch.ones(8))
    assert list(terms) == ["loss"]
    assert terms["loss"].dtype == torch.float32
    terms["loss"].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    plain = asked.losses(net, batch)["loss"]
    assert terms["loss"].item() == pytest.approx(plain.item(), rel=0.1)


# Batches of P classes x K images


sets = st.lists(st.integers(0, 9), min_size=4, max_size=120)


@given(sets, st.integers(2, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=150)
def test_groups_of_a_class(
    labels: list[int], k: int, groups: int, processes: int, seed: int
) -> None:
    """What holds of every order: so many images, each group of one class, no image twice in it
    while the class has others, and none again before all of its class have been."""
    own = np.array(labels) * 3
    n, classes = len(own), len(set(labels))
    index, copy = grouped(own, k, groups * k, seed, 5, processes)
    assert (len(index), len(copy)) == (n, n)
    whole = [
        (a, b) for a, b in batches(n, groups * k, processes) if b - a == groups * k * processes
    ]
    for low, high in whole:
        for rank in range(processes):
            part = slice(low + rank, high, processes)
            of_group = own[index[part]].reshape(-1, k)
            assert (of_group == of_group[:, :1]).all()
            distinct = set(of_group[:, 0].tolist())
            if classes >= groups * processes:
                assert len(distinct) == len(of_group)
            for row in index[part].reshape(-1, k):
                size = (own == own[row[0]]).sum()
                assert len(set(row.tolist())) == min(k, size)
    pairs = list(zip(index.tolist(), copy.tolist(), strict=True))
    assert len(set(pairs)) == n
    for label in set(own.tolist()):
        members = np.flatnonzero(own == label)
        times = np.bincount(index, minlength=n)[members]
        assert times.max() - times.min() <= 1
        assert set(copy[np.isin(index, members)].tolist()) == set(range(times.max()))


@given(sets, st.integers(2, 5), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=60)
def test_processes_share_the_groups_of_one(
    labels: list[int], k: int, groups: int, processes: int
) -> None:
    own = np.array(labels)
    n = len(own)
    one, _ = grouped(own, k, groups * k * processes, 1, 2)
    several, _ = grouped(own, k, groups * k, 1, 2, processes)
    bounds = batches(n, groups * k, processes)
    if bounds == batches(n, groups * k * processes):
        for low, high in bounds:
            parts = [several[low:high][rank::processes] for rank in range(processes)]
            assert np.concatenate(parts).tolist() == one[low:high].tolist()


def test_classes_come_equally_often_however_many_images_they_have() -> None:
    labels = np.repeat(np.arange(6), [500, 10, 30, 60, 100, 300])
    counts = np.zeros(6)
    orders, seen = set(), set()
    for epoch in range(20):
        index, _ = grouped(labels, 4, 16, 0, epoch)
        counts += np.bincount(labels[index], minlength=6)
        orders.add(tuple(index.tolist()))
        seen.update(index[labels[index] == 0].tolist())
    assert len(orders) == 20
    assert len(seen) > 450  # of 500, of which an epoch shows a third: each time others
    assert counts.min() > 0.9 * counts.max()
    assert grouped(labels, 4, 16, 0, 0)[0].tolist() != grouped(labels, 4, 16, 1, 0)[0].tolist()
    assert tuple(grouped(labels, 4, 16, 0, 3)[0].tolist()) in orders


@pytest.mark.parametrize(("batch", "processes"), [(6, 1), (6, 2), (14, 1)])
def test_no_class_comes_twice_in_a_batch(batch: int, processes: int) -> None:
    """Seven classes, of which a batch has three, six or all."""
    labels = np.arange(840) % 7
    for epoch in range(3):
        index, _ = grouped(labels, 2, batch, 0, epoch, processes)
        together = labels[index].reshape(-1, batch * processes)
        assert all(np.bincount(row).max() == 2 for row in together)


def small_split() -> tuple[np.ndarray, Split]:
    pixels = np.random.default_rng(0).integers(0, 256, (26, 16, 16, 3), dtype=np.uint8)
    names = [f"{i}.png" for i in range(26)]
    return pixels, Split(ArrayReader(pixels), names, np.arange(26) % 5)


def test_both_feeds_give_groups_from_any_batch_on() -> None:
    pixels, split = small_split()
    asked = Embed(PREPROCESS, AugmentConfig(flip=True), config(per_class=2))
    resident = ResidentFeed(pixels, split.labels, 8, 3, per_class=2)
    decoded = DecodedFeed(split, 3, asked.augment, asked.collate, 8, 3, 0, per_class=2)
    expected = grouped(split.labels, 2, 8, 3, 1)
    for feed in (resident, decoded):
        found = [(b.index, b.repeat) for b in feed.epoch(1)]
        for i, whole in enumerate(expected):
            assert np.concatenate([pair[i] for pair in found]).tolist() == whole.tolist()
        later = [b.index.tolist() for b in feed.epoch(1, 2)]
        assert later == [index.tolist() for index, _ in found[2:]]
        first = next(iter(feed.epoch(1)))
        assert np.bincount(first.targets.numpy()).max() == 2
        assert [len(b) for b in feed.in_order()] == [8, 8, 8, 2]
    parts = [ResidentFeed(pixels, split.labels, 8, 3, Part(r, 2), per_class=2) for r in (0, 1)]
    both = np.concatenate([b.index for feed in parts for b in feed.epoch(1)])
    whole = grouped(split.labels, 2, 16, 3, 1)[0]
    assert sorted(both.tolist()) == sorted(whole.tolist())


def test_two_copies_of_an_image_are_augmented_each_by_itself() -> None:
    """Three images of a class and four in a group: one is there twice, and differs."""
    pixels, split = small_split()
    few = split.take(np.array([0, 5, 10, 1, 6, 11]))
    asked = Embed(PREPROCESS, AugmentConfig(pad_crop=4, flip=True), config(per_class=4))
    feed = ResidentFeed(pixels[[0, 5, 10, 1, 6, 11]], few.labels, 8, 0, per_class=4)
    batch = next(iter(feed.epoch(0)))
    assert isinstance(batch.repeat, np.ndarray)
    seen = asked.to_input(batch, Key(0, 0, batch.index, batch.repeat))
    twice = [np.flatnonzero(batch.index == i) for i in set(batch.index.tolist())]
    pairs = [at for at in twice if len(at) == 2]
    assert pairs
    assert any(not torch.equal(seen.images[a], seen.images[b]) for a, b in pairs)


# Evaluation


def scored(n: int = 40, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    vectors = rng.normal(size=(classes, 8))[labels] + rng.normal(size=(n, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def seen_by(vectors: np.ndarray, labels: np.ndarray, index: np.ndarray) -> RetrievalEvaluator:
    evaluator = RetrievalEvaluator()
    for part in np.array_split(index, 3):
        batch = Batch(None, torch.from_numpy(labels[part]), part)
        evaluator.update(vectors[part], batch)
    return evaluator


def test_parts_merge_to_what_one_would_have_seen() -> None:
    vectors, labels = scored()
    n = len(labels)
    order = np.random.default_rng(1).permutation(n)
    whole = seen_by(vectors, labels, np.arange(n))
    merged = seen_by(vectors, labels, order[:25])
    merged.metrics()
    merged.merge(seen_by(vectors, labels, order[18:]))  # some were seen by both
    assert merged.metrics() == whole.metrics()
    assert merged.interval() == whole.interval()
    found = retrieved(vectors, labels)
    expected = {f"recall_at_{k}": found.recall_at_k(k) for k in KS}
    assert whole.metrics() == expected | {"map_at_r": found.map_at_r()}
    low, high = whole.intervals()["recall_at_1"]
    assert low < expected["recall_at_1"] < high
    assert all(low <= high for low, high in whole.intervals().values())


def test_the_interval_is_about_that_of_a_bootstrap_over_classes() -> None:
    """Of many classes, uneven ones: for few the bootstrap itself is too narrow."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(150), rng.integers(1, 9, 150))  # some are alone of their class
    vectors = rng.normal(size=(150, 8))[labels] + 0.6 * rng.normal(size=(len(labels), 8))
    evaluator = seen_by(vectors.astype(np.float32), labels, np.arange(len(labels)))
    found, ends = evaluator.found, evaluator.intervals()
    own = labels[found.index]
    size = np.bincount(own)
    drawn = rng.multinomial((size > 0).sum(), (size > 0) / (size > 0).sum(), 4000)
    of_queries = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), 4000) / len(own)
    for name, values in (("recall_at_1", found.found_at(1)), ("map_at_r", found.precision)):
        means = drawn @ np.bincount(own, values) / (drawn @ size)
        low, high = ends[name]
        assert (low, high) == pytest.approx(
            np.quantile(means, [0.025, 0.975]), abs=0.06 * (high - low)
        )
        assert np.diff(np.quantile(of_queries @ values, [0.025, 0.975])) < 0.9 * (high - low)


def test_intervals_hold_the_truth_for_new_classes() -> None:
    """The usual protocol: classes that were not trained on, and the next ones are others. With
    queries as the unit 95 % were 65 for recall@1, 78 for recall@8 and 52 for mAP@R."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    told = []
    for _ in range(100):
        centres = 0.9 * rng.normal(size=(20, 16)) * rng.uniform(0.5, 1.5, (20, 1))
        vectors = centres[labels] + rng.normal(size=(200, 16))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        evaluator = seen_by(vectors.astype(np.float32), labels, np.arange(200))
        ends, figures = evaluator.intervals(), evaluator.metrics()
        told.append([(figures[name], *ends[name]) for name in figures])
    value, low, high = np.moveaxis(np.array(told), 2, 0)
    held = ((low <= value.mean(axis=0)) & (value.mean(axis=0) <= high)).mean(axis=0)
    assert (held >= 0.9).all()


def test_a_recall_of_all_or_none_is_no_more_certain_than_so_many_classes() -> None:
    labels = np.arange(20) // 4
    apart = np.eye(5, dtype=np.float32)[labels]
    for vectors, share in ((apart, 1), (np.ones_like(apart) / 2, 0)):
        evaluator = seen_by(vectors, labels, np.arange(20))
        assert set(evaluator.metrics().values()) == {share}
        found = stats.binomtest(5 * share, 5).proportion_ci(method="wilson")
        for ends in evaluator.intervals().values():
            assert ends == pytest.approx((found.low, found.high), abs=1e-6)


def test_four_classes_have_no_interval() -> None:
    evaluator = seen_by(*scored(40, 4), np.arange(40))
    assert not any(evaluator.intervals().values())


def test_vectors_that_are_no_numbers_have_no_metric() -> None:
    vectors, labels = scored()
    vectors[3, 2] = np.nan
    evaluator = seen_by(vectors, labels, np.arange(len(labels)))
    assert all(math.isnan(value) for value in evaluator.metrics().values())
    assert evaluator.interval() is None


def test_a_split_without_a_query_has_no_interval() -> None:
    evaluator = seen_by(scored()[0][:4], np.arange(4), np.arange(4))
    assert evaluator.interval() is None
    assert evaluator.per_class("abcd") == []


def test_details_name_the_worst_queries_with_what_they_found() -> None:
    _, split = small_split()
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(26, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = split.labels.copy()
    labels[7] = 5  # no other of its class
    evaluator = seen_by(vectors, labels, np.arange(26))
    details = evaluator.details(split, [f"class {k}" for k in range(6)])
    assert details["queries"] == 25
    assert sum(row["n"] for row in details["per_class"]) == 25
    found = evaluator.found
    weighted = sum(row["n"] * row["map_at_r"] for row in details["per_class"]) / 25
    assert weighted == pytest.approx(found.map_at_r())
    once = sum(row["n"] * row["recall_at_1"] for row in details["per_class"]) / 25
    assert once == pytest.approx(found.recall_at_k(1))
    rows = details["worst"]
    precision = [row["map_at_r"] for row in rows]
    assert precision == sorted(precision)
    assert precision[-1] <= sorted(found.precision)[len(rows) - 1] + 1e-12
    for row in rows:
        i = int(Path(row["name"]).stem)
        assert row["label"] == f"class {labels[i]}"
        assert row["image"].startswith("data:image/png;base64,")
        similar = [n["similarity"] for n in row["neighbours"]]
        assert similar == sorted(similar, reverse=True)
        for near in row["neighbours"]:
            j = int(Path(near["name"]).stem)
            assert j != i
            assert near["right"] == (labels[j] == labels[i])
            assert near["similarity"] == pytest.approx(float(vectors[i] @ vectors[j]), abs=1e-6)
        nearest = max((float(vectors[i] @ vectors[j]), j) for j in range(26) if j != i)[1]
        assert Path(row["neighbours"][0]["name"]).stem == str(nearest)


@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_learns_to_tell_brightness_apart(kind: str) -> None:
    """Four classes of noise by its mean level, a network of one block a stage."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 4
    pixels = np.clip(rng.normal(60 * labels[:, None, None, None] + 30, 25, (48, 16, 16, 3)), 0, 255)
    asked = Embed(PREPROCESS, AugmentConfig(), config(loss=kind, dim=8, per_class=4, pooling="gem"))
    torch.manual_seed(0)
    net = asked.build(tiny(4))
    assert isinstance(net, EmbeddingNet)
    feed = ResidentFeed(pixels.astype(np.uint8), labels, 16, 0, per_class=4)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for epoch in range(8):
        for batch in feed.epoch(epoch):
            batch = asked.to_input(batch, Key(0, epoch, batch.index))
            loss = asked.losses(net, batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    evaluator = asked.evaluator()
    net.eval()
    with torch.inference_mode():
        for batch in feed.in_order():
            batch = asked.to_input(batch, None)
            evaluator.update(asked.predict(net, batch), batch)
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert evaluator.metrics()["recall_at_1"] > 0.8


def test_gems_power_rises_again_from_1() -> None:
    """The gradient of a clamp ends at its border, and so would what is learned there."""
    pool = GeM(1.0).train()
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(pool.parameters(), 0.1)
    for sign in (1, 1, -1, -1, -1):  # down, and it stays; then up
        optimizer.zero_grad()
        (sign * pool(x).sum()).backward()
        assert pool.p.grad is not None
        assert pool.p.grad.abs() > 0.1
        optimizer.step()
        assert (pool.eval()(x) >= x.mean((2, 3)) - 1e-6).all()
        pool.train()
    assert pool.p > 1.2
