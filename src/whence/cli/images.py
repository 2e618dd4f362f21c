"""Images in files: a folder for each class, a folder of images, or a single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import import_extra
from whence.progress import track
from whence.report.pixels import pillow_pixels

__all__ = ["IMAGE_SUFFIXES", "Frame", "Images", "open_images"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")

#: Pillow's name of images with so many channels of a byte each.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
#: Modes that would lose more than they show when they are brought to bytes.
WIDE_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Frame:
    """The size and channels that images are brought to; ``None`` is taken from the first one.

    Attributes
    ----------
    height, width, channels : int or None
    resize : bool
        Whether images of another size are brought to this one, or refused.
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    resize: bool = False


class Images:
    """Image files, read when they are asked for.

    Parameters
    ----------
    paths : sequence of Path
    frame : Frame
        Whole: with a height, a width and channels.
    """

    are_images = True

    def __init__(self, paths: Sequence[Path], frame: Frame) -> None:
        self._paths = paths
        self.frame = frame
        self._pillow = import_extra("PIL.Image", "cli")

    def __len__(self) -> int:
        return len(self._paths)

    def take(self, rows: Any) -> np.ndarray:
        """Return images as bytes, shape ``(n, H, W, C)``."""
        return np.stack([self._read(self._paths[row]) for row in np.arange(len(self))[rows]])

    def shown(self, row: int) -> np.ndarray:
        """Return what a person sees of a sample: the image as it lies there, bytes."""
        with self._pillow.open(self._paths[row]) as image:
            return pillow_pixels(image)

    def table(self) -> None:
        """Return None: images are no rows."""

    def _read(self, path: Path) -> np.ndarray:
        try:
            with self._pillow.open(path) as image:
                converted = image.convert(MODES[int(self.frame.channels or 0)])
        except Exception as error:  # Pillow's for broken files are of many kinds, and one for bombs
            raise unreadable(path, error) from error
        height, width = int(self.frame.height or 0), int(self.frame.width or 0)
        if converted.size != (width, height):
            converted = converted.resize((width, height), self._pillow.Resampling.BILINEAR)
        return np.asarray(converted).reshape(height, width, -1)


def open_images(
    path: Path,
    frame: Frame,
    argument: str,
    need_classes: bool,
    progress: bool | None,
) -> tuple[Images, np.ndarray | None, np.ndarray, list[str] | None]:
    """Return the images under a path, their labels and names, and the names of the classes.

    Every image is opened once, as far as its header, so that what is wrong is found before the work.
    """
    folders = [] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.is_dir())
    loose = [path] if path.is_file() else _images_in(path)
    if folders and loose:
        raise WhenceError(
            f"{argument} {str(path)!r}",
            "folders of images, one for each class, or images",
            f"both, such as {folders[0].name} and {loose[0].name}",
            "Move the images into the folders of their classes.",
        )
    by_class = {folder.name: _images_in(folder) for folder in folders}
    paths = [file for files in by_class.values() for file in files] if folders else loose
    if not paths:
        raise WhenceError(
            f"{argument} {str(path)!r}",
            f"images ({', '.join(IMAGE_SUFFIXES)}) in one folder for each class",
            "a folder without any",
            "Check the path.",
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty and need_classes:
        raise WhenceError(
            f"{argument} {str(path)!r}",
            "at least one image of every class",
            f"none in {', '.join(empty[:5])}",
            "Remove empty folders, or those that hold no class.",
        )
    frame = _frame_of(paths, frame, argument, progress)
    base = path.parent if path.is_file() else path
    names = np.asarray([file.relative_to(base).as_posix() for file in paths])
    if not folders:
        return Images(paths, frame), None, names, None
    labels = np.repeat(np.asarray(list(by_class), dtype=object), [len(f) for f in by_class.values()])
    return Images(paths, frame), labels, names, list(by_class)


def unreadable(path: Path, error: Exception) -> WhenceError:
    """Return the error for a file that is no image."""
    return WhenceError(
        f"image {str(path)!r}", "an image", f"a file that cannot be read ({error})", "Remove or replace it."
    )


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _frame_of(paths: Sequence[Path], frame: Frame, argument: str, progress: bool | None) -> Frame:
    """Return the frame with what it left open taken from the first image, every image looked at."""
    pillow = import_extra("PIL.Image", "cli")
    height, width, channels = frame.height, frame.width, frame.channels
    for path in track(paths, "looking at images", len(paths), progress, "image"):
        try:
            with pillow.open(path) as image:
                size, mode = image.size, image.mode
        except Exception as error:  # as above
            raise unreadable(path, error) from error
        if mode in WIDE_MODES:
            raise WhenceError(
                f"image {str(path)!r}", "8 bits a channel", f"mode {mode}", "Convert it to 8 bits first."
            )
        channels = channels or (1 if mode in ("1", "L", "LA") else 3)
        height, width = height or size[1], width or size[0]
        if not frame.resize and size != (width, height):
            raise WhenceError(
                f"image {str(path)!r}",
                f"{width} × {height} pixels, as of the other images",
                f"{size[0]} × {size[1]}",
                "Say which size the model takes: --image-size HEIGHTxWIDTH",
            )
    if channels not in MODES:
        raise WhenceError(
            argument, "a model that takes images of 1, 3 or 4 channels", f"{channels}", "Give an .npz file."
        )
    return Frame(height, width, channels, frame.resize)
