"""Pictures as a network takes them: opened with Pillow, cropped, and normalised as ImageNet models expect."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..core import check
from ..core.files import as_path
from .rows import Rows

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Normalize:
    """uint8 (n, 3, H, W) -> float32 (n, 3, S, S), ImageNet's mean and deviation; `size` None keeps H, W."""

    def __init__(self, size: int | None = None):
        self.size = size
        self.mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD).view(3, 1, 1)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.float().div_(255)
        if self.size is not None and len(x):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        elif self.size is not None:
            x = x.new_empty(0, 3, self.size, self.size)
        return x.sub_(self.mean).div_(self.std)


def is_picture(path: Path) -> bool:
    """Whether a file bears a picture's name; hidden files (macOS writes `._a.jpg`) are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def find_pictures(folder) -> list[Path]:
    """The pictures of a folder and those below it, in the order of their names."""
    folder = as_path(folder, "folder")
    found = sorted(p for p in folder.rglob("*") if is_picture(p))
    if not found:
        raise ValueError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found none")
    return found


def open_picture(path: str, upright: bool = True):
    """The picture of a file as a PIL image in RGB; ValueError, naming the file, where it cannot be read.

    Pictures with more than 8 bits a pixel keep their range (see `eight_bits`). `upright` turns a picture as its EXIF
    orientation says; False leaves it as it is stored.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            said = _orientation(picture)
            picture.load()
            left = _orientation(picture)  # of TIFF files, nothing: Pillow turns them itself
            turn = left if upright else _inverse(said if said != left else None)
            if picture.mode[0] in "IF":
                picture = Image.fromarray(eight_bits(np.asarray(picture), picture.mode))
            picture = picture.convert("RGB")
            return picture if turn is None else picture.transpose(turn)
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        raise ValueError(f"image file {path}: cannot be read ({type(error).__name__}: {error})") from error


def _orientation(picture):
    """The transposition that EXIF asks for, or None."""
    from PIL.Image import Transpose as T

    turns = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
    try:
        return dict(enumerate(turns, 2)).get(picture.getexif().get(0x0112))
    except Exception:  # damaged EXIF says nothing; the pixels may be sound all the same
        return None


def _inverse(turn):
    from PIL.Image import Transpose as T

    return {T.ROTATE_90: T.ROTATE_270, T.ROTATE_270: T.ROTATE_90}.get(turn, turn)


def eight_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Grey pixels of more than 8 bits (mode "I;16...", "I" or "F") as uint8, none of them cut off.

    16-bit pixels are divided by 257. Others are taken as they are where they lie from 0 to 255 (as fractions of 255
    where they are floating point and lie from 0 to 1), as 16 bits where they are integers up to 65535; else their
    own range becomes 0 to 255.
    """
    x = pixels.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("pixels that are NaN or infinite")
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    whole = pixels.dtype.kind in "iu"
    if mode.startswith("I;16") or (whole and low >= 0 and 255 < high <= 65535):
        x = x / 257
    elif not whole and low >= 0 and high <= 1:
        x = x * 255
    elif low < 0 or high > 255:
        x = (x - low) * (255 / ((high - low) or 1))
    return np.rint(x).astype(np.uint8)


def resize_for(image_size: int, resize: int | None) -> int:
    """The shorter side before `image_size` is cut: as given, or 256 for 224 and in proportion."""
    if resize is None:
        return round(image_size * 256 / 224)
    return check.positive_int(resize, "resize", minimum=image_size)


def center_view(picture, resize: int, size: int) -> np.ndarray:
    """The shorter side resized to `resize`, then the central `size` x `size`: uint8 (size, size, 3).

    Done in one resampling of the part that is kept, so that an extremely long picture costs no memory.
    """
    width, height = picture.size
    short = min(width, height)
    new_width, new_height = resize * width // short, resize * height // short
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    scale_x, scale_y = width / new_width, height / new_height
    right, bottom = min((left + size) * scale_x, width), min((top + size) * scale_y, height)
    box = (left * scale_x, top * scale_y, right, bottom)
    return _resample(picture, size, box)


def random_view(picture, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part (8% to 100% of the area, aspect 3/4 to 4/3), at random flipped: uint8 (size, size, 3)."""
    width, height = picture.size
    box = None
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            box = (left, top, left + w, top + h)
            break
    if box is None:
        w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    view = _resample(picture, size, box)
    return view[:, ::-1] if rng.random() < 0.5 else view


def _resample(picture, size: int, box) -> np.ndarray:
    from PIL import Image

    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


class FileRows(Rows):
    """Pictures in files, opened when they are asked for.

    Args:
        root: the directory of the pictures.
        paths: file paths below it, one a row.
        resize, size: of `center_view`; `size` also of `random_view`.
        upright: of `open_picture`.
    """

    in_memory = False

    def __init__(self, root: str, paths: list[str], resize: int, size: int, upright: bool = True):
        self.root, self.upright = root, upright
        # One array instead of many strings: forked DataLoader workers do not copy it by touching it.
        self.paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.resize, self.size = resize, size
        self.normalize = Normalize()
        self.input_shape = (3, size, size)

    def path(self, row: int) -> str:
        """The file of a row."""
        return os.path.join(self.root, os.fsdecode(self.paths[row].item()))

    def file_name(self, row):
        return self.paths[row].item().decode("utf-8", "replace")

    def item(self, row, rng):
        picture = open_picture(self.path(row), self.upright)
        view = random_view(picture, self.size, rng) if rng else center_view(picture, self.resize, self.size)
        return self.normalize(torch.from_numpy(view.transpose(2, 0, 1).copy())[None])[0]

    def batch(self, rows):
        items = [self.item(row, None) for row in rows.tolist()]
        return torch.stack(items) if items else torch.empty(0, *self.input_shape)

    def raw(self, row):
        return np.array(open_picture(self.path(row), self.upright))

    def identity(self):
        return b"\0".join(self.paths.tolist())
