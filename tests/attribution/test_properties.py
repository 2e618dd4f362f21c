"""What must not matter, over any shapes, dtypes, batches, weights and names of samples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import whence

linear_model = pytest.importorskip("sklearn.linear_model")
QUICK = settings(max_examples=15, deadline=None)


@st.composite
def problems(draw):
    """Samples with classes and weights, a fitted layer, and samples to explain."""
    n, d = draw(st.integers(4, 25)), draw(st.integers(1, 5))
    n_classes = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    x = rng.normal(size=(n, d)).astype(dtype)
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n)])[:n]
    weight = draw(arrays.arrays(np.int64, n, elements=st.integers(0, 3)))
    weight[0] = 1
    model = linear_model.LogisticRegression(C=draw(st.sampled_from([0.1, 1.0, 10.0]))).fit(x, y)
    return model, x, y, weight, rng.normal(size=(3, d)).astype(dtype)


def cut(draw, *parts):
    """Cut arrays into batches of any sizes."""
    n = len(parts[0])
    edges = sorted({0, n, *draw(st.lists(st.integers(1, n - 1), max_size=4))})
    return [tuple(p[a:b] for p in parts) for a, b in itertools.pairwise(edges)]


def made(model, data, method=whence.RepresenterPointLJE, damping=1e-3, **options):
    factory = whence.ExactIHVPFactory(damping)
    return method(whence.InfluenceModel(model), data, factory, progress=False, **options)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9 + 1e-7 * np.abs(other).max(initial=0))


@QUICK
@given(problems(), st.data())
def test_batches_and_order_do_not_matter_and_sums_are_complete(problem, data):
    model, x, y, weight, new = problem
    whole = made(model, (x, y, weight.astype(float)))
    expected = whole.influences([new])
    parts = made(model, cut(data.draw, x, y, weight.astype(float)))
    close(parts.influences([part for (part,) in cut(data.draw, new)]), expected)
    order = data.draw(st.permutations(range(len(x))))
    turned = made(model, (x[order], y[order], weight[order].astype(float)))
    close(turned.influences([new]), expected[:, order])
    close(expected.astype(np.float64).sum(axis=1), whole.explain([new], k=1).totals)


@QUICK
@given(problems(), st.data())
def test_names_go_with_their_samples(problem, data):
    model, x, y, _, new = problem
    # NumPy's texts end where a zero is.
    texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
    some = st.integers(-(2**62), 2**62), texts
    lists = [st.lists(kind, min_size=len(x), max_size=len(x), unique=True) for kind in some]
    names = data.draw(st.one_of(lists))
    plain, named = made(model, (x, y)), made(model, (x, y), ids=names)
    one, other = plain.explain([new], k=3), named.explain([new], k=3)
    assert other.ids.tolist() == [[names[row] for row in rows] for rows in one.ids]
    np.testing.assert_array_equal(one.values, other.values)
    assert named.suspects(k=None).ids.tolist() == [names[row] for row in plain.suspects(k=None).ids]


@QUICK
@given(problems())
def test_a_weight_is_as_many_samples(problem):
    model, x, y, weight, new = problem
    n, total = len(x), int(weight.sum())
    rows = np.repeat(np.arange(n), weight)
    labels = model.predict(new)
    # The mean is over all samples, whatever they count: (H + lam) of one is total / n times the other's.
    weighted = made(
        model, (x, y, weight.astype(float)), whence.InfluenceFunctions, damping=1e-3 * total / n
    ).influences([(new, labels)])
    repeated = made(model, (x[rows], y[rows]), whence.InfluenceFunctions)
    groups = repeated.influences([(new, labels)], groups=np.searchsorted(np.unique(rows), rows))
    close(weighted[:, np.unique(rows)], groups)
