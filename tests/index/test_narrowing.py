"""Half precision: refused where it has no digits for what tells samples apart, by all batches together."""

import numpy as np
import pytest

from whence import WhenceError
from whence.index import Index
from whence.index.building import Writer
from whence.index.narrowing import Narrowing

RNG = np.random.default_rng(0)


def filled(index, batches):
    index.begin({"layer": "dense"})
    for number, phi in enumerate(batches):
        prints = np.arange(len(phi), dtype=np.uint64) + 1000 * number
        index.append(phi.astype(np.float32), np.zeros(len(phi), dtype=np.int64), None, prints)
    return index.finish()


def refused(batches, make=lambda: Index("float16")):
    with pytest.raises(WhenceError, match="float16 rounds by less than"):
        filled(make(), batches)


def test_features_far_from_zero_beside_their_spread(tmp_path):
    near, far = (RNG.normal(size=(64, 3)) + offset for offset in (10, 100))
    assert filled(Index("float16"), [near]).shards[0].features.dtype == np.float16
    refused([far])
    refused([far], lambda: Writer(tmp_path / "index", "float16"))
    filled(Index("float32"), [far])
    filled(Index(), [far])


def test_batches_of_one_class_each_are_looked_at_together():
    """Each batch lies close together, far from zero; all of them spread around it."""
    batches = [RNG.normal(size=(16, 3)) * 0.5 + offset for offset in (-100, -50, 50, 100)]
    assert filled(Index("float16"), batches).n_samples == 64
    refused([np.full((1, 1), 100 + value) for value in RNG.normal(size=40)])


def test_one_feature_of_many_and_constants_do_not_count():
    phi = RNG.normal(size=(64, 400))
    phi[:, 0] += 100
    phi[:, 1] = 1000.3
    filled(Index("float16"), [phi])


def test_it_is_sent_elsewhere_empty():
    narrowing = Narrowing("float16")
    narrowing(RNG.normal(size=(64, 1)) + 1000)
    make, arguments = narrowing.__reduce__()
    make(*arguments).check()
    assert arguments == ("float16",)
