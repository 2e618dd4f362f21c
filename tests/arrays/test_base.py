"""What stands below the mathematics: the same from every library of arrays."""

import numpy as np
import pytest
from tolerances import FLOAT32, FLOAT64, assert_close

from whence import MissingExtraError, WhenceError
from whence.arrays.base import (
    Workspace,
    as_numpy,
    assign,
    astype,
    check_finite,
    check_number,
    import_extra,
    itemsize,
    namespace,
    one_hot,
    row_slices,
)
from whence.arrays.symmetric import cholesky


def test_namespace_skips_what_is_not_given(xp):
    array = xp.asarray([1.0])
    found = namespace(None, array, None)
    assert found.__name__.split(".")[-1].startswith(xp.__name__.split(".")[-1])
    np.testing.assert_array_equal(as_numpy(found.zeros(2)), [0, 0])


def test_arrays_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError):
        namespace(np.zeros(1), torch.zeros(1))


def test_numpy_arrays_are_themselves_and_lists_become_arrays():
    array = np.zeros(2)
    assert as_numpy(array) is array
    assert as_numpy([1, 2]).tolist() == [1, 2]


def test_torch_tensors_are_viewed_also_with_a_gradient():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, requires_grad=True)
    view = as_numpy(tensor)
    with torch.no_grad():
        tensor[0] = 3
    assert view.tolist() == [3, 0]
    assert as_numpy(torch.tensor([1.5, -2], dtype=torch.bfloat16)).dtype == np.float32
    assert as_numpy(torch.tensor([1.5, -2], dtype=torch.bfloat16)).tolist() == [1.5, -2]


def test_tensorflow_tensors_are_viewed():
    tf = pytest.importorskip("tensorflow")
    tensor = tf.constant(np.arange(64.0))
    assert np.shares_memory(as_numpy(tensor), as_numpy(tensor))
    narrow = as_numpy(tf.constant([1.5, -2], dtype=tf.bfloat16))
    assert narrow.dtype == np.float32
    assert narrow.tolist() == [1.5, -2]


def test_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    array = jnp.zeros(3, dtype=jnp.float32)
    changed = assign(array, 1, 2.0)
    assert as_numpy(array).tolist() == [0, 0, 0]
    assert as_numpy(changed).tolist() == [0, 2, 0]
    assert itemsize(array) == 4
    assert as_numpy(jnp.asarray([1.5], dtype=jnp.bfloat16)).dtype == np.float32
    matrix = np.float32([[4, 0], [1, 3]])
    solved = as_numpy(cholesky(jnp.asarray(matrix)).solve(jnp.ones((2, 1))))
    assert_close(solved, np.linalg.solve([[4, 1], [1, 3]], np.ones((2, 1))), FLOAT32)
    with pytest.raises(np.linalg.LinAlgError):  # where JAX itself returns NaN
        cholesky(jnp.asarray(-matrix))


def test_astype_copies_only_where_it_must(xp):
    array = xp.asarray([1.0, 2.0], dtype=xp.float64)
    assert astype(array, xp.float64) is array
    assert astype(array, xp.float32).dtype == xp.float32
    assert as_numpy(array).dtype == np.float64


def test_assign(xp):
    array = xp.zeros((2, 2))
    array = assign(array, (0, slice(None)), xp.asarray([1.0, 2.0]))
    np.testing.assert_array_equal(as_numpy(assign(array, (1, 1), 3.0)), [[1, 2], [0, 3]])


def test_itemsize(xp):
    assert itemsize(xp.zeros(1, dtype=xp.float32)) == 4
    assert itemsize(xp.zeros(1, dtype=xp.float64)) == 8


def test_one_hot(xp):
    labels = xp.asarray([2, 0, 2])
    # NumPy has a bool of its own only from version 2 on; the namespace always does.
    for dtype in (xp.float32, xp.float64, namespace(labels).bool):
        rows = one_hot(labels, 3, dtype)
        assert rows.dtype == dtype
        np.testing.assert_array_equal(as_numpy(rows), np.eye(3)[[2, 0, 2]])
    assert one_hot(xp.asarray([], dtype=xp.int64), 3, xp.float32).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_and_counted(bad, xp):
    array = xp.asarray([[1.0, bad], [bad, 2.0]])
    message = "^features: expected finite values in batch 3, got 2 NaN or infinite values. Clean them.$"
    with pytest.raises(WhenceError, match=message):
        check_finite(array, "features", "batch 3", "Clean them.")


def test_what_is_finite_passes(xp):
    for array in (
        xp.asarray([1.0, -1e30]),
        xp.asarray([1, 2]),
        xp.asarray([True]),
        xp.zeros((0, 3)),
    ):
        check_finite(array, "features", "batch 0", "")


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (-1, {}),
        (np.nan, {}),
        (np.inf, {}),
        (-np.inf, {}),
        ("1", {}),
        (None, {}),
        (True, {}),
        (np.bool_(True), {}),
        ([1], {}),
        (1 + 0j, {}),
        (0, {"strictly": True}),
        (0.0, {"strictly": True}),
        (0, {"minimum": 1}),
        (1, {"minimum": 1, "strictly": True}),
        (1.0, {"integer": True}),
        (np.float64(2), {"integer": True}),
        (-1, {"integer": True}),
    ],
)
def test_numbers_out_of_range_are_named(value, options):
    with pytest.raises(WhenceError) as error:
        check_number(value, "damping", **options)
    assert error.value.argument == "damping"
    assert error.value.got == repr(value)
    assert ("an integer" in error.value.expected) == ("integer" in options)
    assert (" > " in error.value.expected) == ("strictly" in options)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (0, {}),
        (1e-300, {"strictly": True}),
        (np.float32(0.5), {}),
        (np.int64(3), {"integer": True}),
        (5, {"minimum": 5}),
    ],
)
def test_numbers_in_range_pass(value, options):
    check_number(value, "damping", **options)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 8])
@pytest.mark.parametrize("block_rows", [1, 3, 8, 100])
def test_slices_cover_every_row_once(n_rows, block_rows):
    slices = list(row_slices(n_rows, block_rows))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n_rows))
    assert all(0 < s.stop - s.start <= block_rows for s in slices)
    assert all(s.stop - s.start == block_rows for s in slices[:-1])


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install 'whence\[report\]'"):
        import_extra("no_such_package.part", "report")
    assert import_extra("json.decoder", "report").JSONDecoder


def test_a_package_that_is_there_and_broken_speaks_for_itself(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs") as error:
        import_extra("broken_package", "report")
    assert not isinstance(error.value, MissingExtraError)


def test_a_workspace_gives_products_whose_memory_is_taken_again(xp, rng):
    workspace = Workspace()
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(3, 5))
    first = workspace.matmul(xp.asarray(a), xp.asarray(b))
    assert_close(np.asarray(first), a @ b, FLOAT64)
    single = workspace.matmul(xp.asarray(a[:2].astype(np.float32)), xp.asarray(b.astype(np.float32)))
    assert single.shape == (2, 5)
    assert as_numpy(single).dtype == np.float32
    assert_close(np.asarray(single), a[:2] @ b, 1e-6)
    if type(first) is np.ndarray:
        assert np.shares_memory(first, single)
        larger = workspace.matmul(b.T, a.T)
        assert_close(larger, b.T @ a.T, FLOAT64)
        assert np.shares_memory(larger, workspace.matmul(b.T, a.T))
