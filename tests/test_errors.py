"""Messages say argument, expected, got, and what to do."""

import pickle

import pytest

from whence import MissingExtraError, NotConvergedError, NotPositiveDefiniteError, WhenceError


def test_the_four_parts_are_in_the_message_and_on_the_error():
    error = WhenceError("k", "an integer >= 1", "0", "Pass k=5.")
    assert str(error) == "k: expected an integer >= 1, got 0. Pass k=5."
    assert (error.argument, error.expected, error.got, error.fix) == (
        "k",
        "an integer >= 1",
        "0",
        "Pass k=5.",
    )
    assert str(WhenceError("k", "one", "two")) == "k: expected one, got two."
    assert "got something.." not in str(WhenceError("k", "one", "something."))


@pytest.mark.parametrize(
    "error",
    [
        WhenceError("k", "one", "two", "Do."),
        NotPositiveDefiniteError(-0.25, 0.001, "Raise it."),
        NotConvergedError("tolerance", "1e-8", 0.5, "Iterate on."),
    ],
)
def test_all_are_value_errors_and_of_one_family(error):
    assert isinstance(error, WhenceError)
    assert isinstance(error, ValueError)


def test_numbers_stay_on_the_error():
    error = NotPositiveDefiniteError(-0.25, 0.001, "Raise it.")
    assert error.smallest_eigenvalue == -0.25
    assert str(error) == (
        "damping (=0.001): expected a damped Hessian that is positive definite, "
        "got a smallest eigenvalue of -0.25. Raise it."
    )
    slow = NotConvergedError("tolerance", "1e-8", 0.5, "Iterate on.")
    assert slow.relative_residual == 0.5
    assert str(slow) == "tolerance: expected 1e-8, got a relative residual of 0.5. Iterate on."


def test_a_missing_extra_is_an_import_error():
    error = MissingExtraError("jinja2", "report")
    assert isinstance(error, ImportError)
    assert "pip install 'whence[report]'" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        WhenceError("k", "one", "two", "Do."),
        NotPositiveDefiniteError(-0.25, 0.001, "Raise it."),
        NotConvergedError("tolerance", "1e-8", 0.5, "Iterate on."),
        MissingExtraError("jinja2", "report"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error):
    # A worker sends its error by pickle; one that cannot be unpickled takes the pool down with it.
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
