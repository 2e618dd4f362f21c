"""Data files with anything in them: read, or refused in one line; never run, never a foreign error."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence import WhenceError
from whence.cli.images import Frame, open_images
from whence.cli.tables import DataSpec, read_table

IMAGES = pytest.importorskip("PIL.Image")
QUICK = settings(max_examples=60, deadline=None)
FRAME = pd.DataFrame({"a": [1.5, 2.5, 3.5], "b": ["x", "y", "z"], "label": [0, 1, 0]})


def npz():
    file = io.BytesIO()
    np.savez(file, x=np.eye(3), label=np.arange(3), names=np.asarray(["a", "b", "c"]))
    return file.getvalue()


def parquet():
    pytest.importorskip("pyarrow")
    file = io.BytesIO()
    FRAME.to_parquet(file)
    return file.getvalue()


def image(kind):
    file = io.BytesIO()
    IMAGES.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


#: What a whole file of each kind holds.
WHOLE = {
    ".npz": npz,
    ".csv": lambda: FRAME.to_csv(index=False).encode(),
    ".parquet": parquet,
    ".png": lambda: image("PNG"),
    ".jpg": lambda: image("JPEG"),
    ".bmp": lambda: image("BMP"),
}


def read(path):
    """Read a file to its last row."""
    if path.suffix in (".npz", ".csv", ".parquet"):
        source = read_table(path, DataSpec(), None, "DATA", frozenset()).source
    else:
        source = open_images(path, Frame(), "DATA", need_classes=False, progress=False)[0]
    source.take(slice(0, 2))


@pytest.mark.parametrize("kind", WHOLE)
def test_any_change_of_a_file_is_read_or_refused(kind, tmp_path):
    whole, path = WHOLE[kind](), tmp_path / f"data{kind}"
    path.write_bytes(whole)
    read(path)  # as it is

    @QUICK
    @given(st.integers(0, len(whole)), st.integers(0, 60), st.binary(max_size=40), st.booleans())
    def changed(start, length, other, cut):
        path.write_bytes(whole[:start] + other + (b"" if cut else whole[start + length :]))
        with warnings.catch_warnings(), contextlib.suppress(WhenceError):
            warnings.simplefilter("ignore")
            read(path)

    changed()
    assert [file.name for file in Path(tmp_path).iterdir()] == [path.name]


@pytest.mark.parametrize("kind", WHOLE)
def test_any_bytes_are_read_or_refused(kind, tmp_path):
    path = tmp_path / f"data{kind}"

    @QUICK
    @given(st.binary(max_size=200))
    def of(content):
        path.write_bytes(content)
        with warnings.catch_warnings(), contextlib.suppress(WhenceError):
            warnings.simplefilter("ignore")
            read(path)

    of()


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(image("PNG"))
    monkeypatch.setattr(IMAGES, "MAX_IMAGE_PIXELS", 16)  # Pillow's own limit is 179 megapixels
    with pytest.raises(WhenceError, match=r"large\.png.*cannot be read"):
        read(path)
