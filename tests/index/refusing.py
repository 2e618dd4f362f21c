"""What an index refuses, in words."""

import pytest

from whence import WhenceError


def refused(call, *parts):
    """Return the message of the error that ``call`` raises: on one line, with all ``parts`` in it."""
    with pytest.raises(WhenceError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    return message
