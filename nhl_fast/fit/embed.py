"""Texts and pictures to vectors, by models of other packages that are there or not; nothing is fetched here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..core.extras import require
from ..core.files import as_path, existing_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_texts(path, name: str = "texts") -> list[str]:
    """The lines of a UTF-8 file, one text each; ValueError where it is empty or no such file."""
    path = existing_file(path, name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not UTF-8 (byte {error.start})") from None
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise ValueError(f"{name}: expected a text in every line, but line {empty[0]} of {path} is empty")
    if len(lines) < 2:
        raise ValueError(f"{name}: expected at least 2 lines, got {len(lines)} in {path}")
    return lines


def embed_texts(texts: list[str], model: str, device: str | None = None, progress: bool = True) -> np.ndarray:
    """(n, d) float32, of length 1: texts by a sentence-transformers model (its name in the local cache, or a folder).

    Raises:
        ImportError: sentence-transformers is missing.
        ValueError: the model cannot be loaded from this machine.
    """
    require("sentence_transformers", "text", "embedding texts")
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(model, device=device, local_files_only=True)
    except Exception as error:  # each kind of model raises its own
        raise ValueError(
            f"model: {model!r} cannot be loaded from this machine ({type(error).__name__}); give the folder of a "
            "model, or fetch it once with sentence-transformers itself"
        ) from error
    found = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=progress, convert_to_numpy=True)
    return np.asarray(found, dtype=np.float32)


def find_images(folder, name: str = "images") -> list[Path]:
    """Pictures in a folder and those below it, by their paths; ValueError where there are fewer than two."""
    folder = as_path(folder, name)
    if not folder.is_dir():
        raise ValueError(f"{name}: expected a folder of pictures, got {str(folder)!r}")
    found = sorted(Path(top) / file for top, _, files in os.walk(folder) for file in files)
    found = [path for path in found if path.suffix.lower() in SUFFIXES]
    if len(found) < 2:
        raise ValueError(
            f"{name}: expected at least 2 pictures ({', '.join(SUFFIXES)}), got {len(found)} in {folder}"
        )
    return found


def embed_images(paths: list[Path], model: str, device: str | None = None, batch: int = 64) -> np.ndarray:
    """(n, d) float32: pictures by a timm model without its classifier, its weights from a folder or the local cache.

    Args:
        model: timm's name of the model, or "NAME=FILE" with a file of its weights.

    Raises:
        ImportError: timm or Pillow is missing.
        ValueError: no such model, or its weights are not on this machine.
    """
    require("timm", "image", "embedding pictures")
    require("PIL", "data", "reading pictures")
    import timm
    import torch
    from PIL import Image

    name, _, weights = model.partition("=")
    source = {"checkpoint_path": str(existing_file(weights, "model"))} if weights else {"pretrained": True}
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        network = timm.create_model(name, num_classes=0, **source).eval().to(device or "cpu")
    except Exception as error:
        raise ValueError(
            f"model: {model!r} cannot be loaded from this machine ({type(error).__name__}: {error}); give NAME=FILE "
            "with a file of its weights"
        ) from error
    finally:
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    parts = []
    with torch.no_grad():
        for start in range(0, len(paths), batch):
            pictures = []
            for path in paths[start : start + batch]:
                with Image.open(path) as picture:
                    pictures.append(transform(picture.convert("RGB")))
            parts.append(network(torch.stack(pictures).to(device or "cpu")).float().cpu().numpy())
    return np.concatenate(parts)
