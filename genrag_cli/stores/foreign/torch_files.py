"""Arrays in torch files: GeneRAG's published embeddings and predictions, slide2vec's features, any tensor (n, d).

Read with weights_only, so that no pickle is executed. Facts, from public code (HyeongSubKim/GeneRAG, generag/data.py):
embeddings are `{slide}_{encoder}_aug.pt`, float (n, 7, d), averaged over the seven views of a tile, or (n, d);
predictions `generated_samples_lr_{model}_{panel}_20sample.pt`, (n * 20, G) or (n * 20, 1, G) with row = spot * 20 +
sample, averaged over the samples. Neither names its rows or columns. The file does not state a scale.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.rows import ForeignRows, as_matrix, choose
from genrag_cli.stores.foreign.slide2vec import place

_SAMPLES = re.compile(r"(?:^|[_.-])(\d+)samples?(?=\.[^.]*$)")
"""The end of the published names, before the extension."""
_VIEWS = (1, 7, 8)
"""Lengths of an axis that can be views of a tile: the tile itself, the seven published ones, all eight."""


def read_torch_features(path: Path, key: str | None) -> ForeignRows:
    """(n, d), averaged over the views where there are several.

    Raises:
        FeaturesError: for what is no such tensor.
    """
    if _SAMPLES.search(path.name):
        raise FeaturesError(
            f"{path}: by its name these are samples of predictions, not embeddings", "Give it to --anchors-from."
        )
    array = _load(path, key)
    notes: tuple[str, ...] = ()
    if array.ndim == 3 and (array.shape[1] in _VIEWS or len(array) != 1):
        views = array.shape[1]
        if views not in _VIEWS:
            raise FeaturesError(
                f"{path}: shape {array.shape}; the axis in the middle can be 7 or 8 views of a tile, not {views}",
                "Save it as (spots, values).",
            )
        array = array.mean(axis=1, dtype=np.float64)
        notes = (f"averaged over {views} views of each tile",) if views > 1 else ()
    values = as_matrix(path, "the tensor", array)
    if (placed := place(path, values)) is not None:
        return placed
    return ForeignRows(values, None, None, path, "generag-pt", notes=notes)


def read_torch_predictions(path: Path, key: str | None) -> ForeignRows:
    """(n, G), averaged over the samples where the file's name says that there are several.

    Raises:
        FeaturesError: for what is no such tensor.
    """
    array = _load(path, key)
    if array.ndim == 3 and array.shape[1] == 1:
        array = array[:, 0]
    values = as_matrix(path, "the tensor", array)
    notes = ["the file states no expression scale; Stem's published predictions are log2(1 + counts)"]
    if found := _SAMPLES.search(path.name):
        samples = int(found[1])
        if not samples or len(values) % samples:
            raise FeaturesError(
                f"{path}: {len(values)} rows are not {samples} samples of each spot, as its name says",
                "Rows are spot * samples + sample; give the whole file.",
            )
        values = values.reshape(-1, samples, values.shape[1]).mean(axis=1, dtype=np.float64).astype(np.float32)
        notes.append(f"averaged over {samples} samples of each spot, as its name says")
    return ForeignRows(values, None, None, path, "generag-pt", notes=tuple(notes))


def _load(path: Path, key: str | None) -> NDArray[Any]:
    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeaturesError(
            f"{path}: torch does not read it without running code that the file brings ({first})",
            "Save a plain tensor: torch.save(torch.as_tensor(values), FILE); or .npz, .h5ad, .parquet.",
        ) from error
    if isinstance(read, dict):
        tensors = {str(k): v for k, v in read.items() if isinstance(v, torch.Tensor)}
        read = tensors[choose(path, key, {k: tuple(v.shape) for k, v in tensors.items() if v.ndim >= 2}, "tensors")]
    elif key is not None:
        raise FeaturesError(f"{path} holds no tensors by name, so none is called {key!r}")
    if not isinstance(read, torch.Tensor):
        raise FeaturesError(
            f"{path} holds a {type(read).__name__}, not a tensor", "Save a plain tensor (spots, values)."
        )
    read = read.detach()
    if not read.is_floating_point():
        return np.asarray(read.numpy())
    return np.asarray((read if read.dtype == torch.float64 else read.float()).numpy())
