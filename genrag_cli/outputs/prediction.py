"""Writing and reading predictions: AnnData (.h5ad or .zarr) that scanpy and squidpy open with no glue.

Expression is written in blocks of rows as it comes. This module computes nothing.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError, OutputError
from genrag_cli.outputs import keys
from genrag_cli.types import Expression, Floats, Scale, SparseCodes, Strings, TileGrid


@dataclass(frozen=True, eq=False)
class Prediction:
    """Everything of a prediction but the expression itself, which streams."""

    grid: TileGrid
    codes: SparseCodes
    bank_spots: Strings
    """(N,) `section/spot`."""
    bank_sections: Strings
    y_init: Expression
    genes: Strings
    """(G,) genes of X; none for `--expression none`."""
    scale: Scale
    spot_um: float
    """Diameter at which a spot is drawn."""
    about: dict[str, Any]
    obs: dict[str, NDArray[Any]] = field(default_factory=dict)
    """More columns per spot."""
    obsm: dict[str, Any] = field(default_factory=dict)
    """More matrices (n, ...) per spot, dense or CSR."""
    bank_patients: Strings | None = None
    """Names of the columns of the patients' shares among these."""
    var: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Columns per gene."""
    thumbnail: tuple[NDArray[np.uint8], float] | None = None
    """RGB and its px per level-0 px."""


Block = tuple[Floats, NDArray[np.bool_] | None]
"""(b, G) expression of consecutive spots, and (b, G) False where it is missing; None where nothing can be."""


def write_prediction(
    path: Path, prediction: Prediction, blocks: Iterable[Block], *, as_h5ad: bool = True, mark: str = ""
) -> None:
    """Writes a prediction into `path` (a temporary name: making it appear is the caller's business).

    Args:
        path: a file, or an empty folder for Zarr v3.
        prediction: all but X.
        blocks: together they are X and, where they say what is missing, the layer `keys.PRESENT`; ignored where there
            are no genes.
        as_h5ad: HDF5 file, else Zarr group.
        mark: text that stands in an HDF5 file, as an attribute.

    Raises:
        OutputError: for blocks of another number of rows, or of which only some say what is missing.
    """
    import anndata

    adata = _frame(prediction)
    n, g = len(prediction.grid), len(prediction.genes)
    if as_h5ad:
        import h5py

        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            if mark:
                file.attrs["mark"] = np.bytes_(mark)
            if "X" in file:
                del file["X"]
            if g:
                # The mask is all True but for patches: packed, it takes next to nothing.
                packing = {"X": {}, _LAYER: {"compression": "gzip", "compression_opts": 1}}
                _fill(
                    # HDF5 has no chunks of nothing, as where no tissue was found.
                    lambda name, kind: file.create_dataset(
                        name, (n, g), kind, chunks=_chunks(n, g) if n else None, **packing[name]
                    ),
                    blocks, n,
                )  # fmt: skip
        return
    import zarr

    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on what the next release will shard by itself
        adata.write_zarr(path)
    if g:
        group = zarr.open_group(path, mode="r+")
        if "X" in group:
            del group["X"]
        _fill(lambda name, kind: group.create_array(name, shape=(n, g), dtype=kind, chunks=_chunks(n, g)), blocks, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # not in the v3 specification yet; anndata uses it
            zarr.consolidate_metadata(path)


_MORE = (keys.SECTION_SHARES, keys.PATIENT_SHARES, keys.COMPONENTS)
_LAYER = f"layers/{keys.PRESENT}"


def _chunks(n: int, g: int) -> tuple[int, int]:
    return (max(1, min(n, 64)), max(1, min(g, 2500)))


def _fill(create: Callable[[str, str], Any], blocks: Iterable[Block], n: int) -> None:
    """Writes blocks into X and, where they come with one, the mask; `create` makes an array of a name and type."""
    row, arrays = 0, {"X": create("X", "float32")}
    for values, present in blocks:
        if present is not None and row == 0 and _LAYER not in arrays:
            arrays[_LAYER] = create(_LAYER, "bool")
        if (present is not None) != (_LAYER in arrays):
            raise OutputError(f"only some blocks of expression say what is missing; the others start at row {row}")
        for array, part in zip(arrays.values(), (values, present), strict=False):
            array[row : row + len(values)] = part
        row += len(values)
    if row != n:
        raise OutputError(f"{row} rows of expression were computed, {n} were announced")
    for array in arrays.values():
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _frame(prediction: Prediction) -> Any:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    grid, codes = prediction.grid, prediction.codes
    names, slide = pd.Index(grid.names.tolist(), dtype=object), grid.slide_id
    weights = sp.csr_matrix((codes.weights, codes.indices, codes.indptr), shape=(len(codes), codes.n_bank))
    obs = pd.DataFrame(
        {
            keys.ARRAY_ROW: grid.array_rc[:, 0],
            keys.ARRAY_COL: grid.array_rc[:, 1],
            keys.IN_TISSUE: np.ones(len(grid), np.int64),
            keys.LIBRARY: pd.Categorical([slide] * len(grid), categories=[slide]),
            keys.N_REFS: codes.n_active,
            keys.WEIGHT_SUM: np.asarray(weights.sum(axis=1)).ravel().astype(np.float32),
            keys.GAP: codes.gap,
            keys.PASSES: codes.passes,
            keys.STATUS: pd.Categorical(codes.status.tolist(), categories=["solved", "stalled"]),
            **prediction.obs,
        },
        index=names,
    )
    var = pd.DataFrame(prediction.var, index=pd.Index(prediction.genes.tolist(), dtype=object))
    pixel = grid.pixel_size
    spatial: dict[str, Any] = {
        "metadata": {"slide": slide, "mpp": float(pixel.mpp), "mpp_source": pixel.source},
        "scalefactors": {"spot_diameter_fullres": float(prediction.spot_um / pixel.mpp)},
    }
    if prediction.thumbnail is not None:
        spatial["images"] = {"hires": prediction.thumbnail[0]}
        spatial["scalefactors"]["tissue_hires_scalef"] = float(prediction.thumbnail[1])
    return anndata.AnnData(
        obs=obs,
        var=var,
        obsm={
            keys.SPATIAL: grid.level0,
            keys.WEIGHTS: weights,
            keys.Y_INIT: prediction.y_init.values,
            **prediction.obsm,
        },
        uns={
            keys.SPATIAL: {slide: spatial},
            keys.BANK_OBS: np.asarray(prediction.bank_spots, object),
            keys.BANK_SECTIONS: np.asarray(prediction.bank_sections, object),
            keys.ANCHORS: np.asarray(prediction.y_init.genes, object),
            **(
                {}
                if prediction.bank_patients is None
                else {keys.BANK_PATIENTS: np.asarray(prediction.bank_patients, object)}
            ),
            keys.ABOUT: {
                "unit": prediction.scale.name,
                "y_init_unit": prediction.y_init.scale.name,
                **{k: v if isinstance(v, str | int | float) else json.dumps(v) for k, v in prediction.about.items()},
            },
        },
    )


def read_about(path: Path) -> dict[str, Any]:
    """The provenance of a prediction, without reading the rest.

    Raises:
        OutputError: where the file is missing, damaged, or not a prediction of generag.
    """
    import anndata

    with _opened(path) as file:
        if f"uns/{keys.ABOUT}" not in file:
            raise OutputError(f"{path} is not a prediction of generag", "Give a file that `generag retrieve` wrote.")
        return {k: _plain(v) for k, v in anndata.io.read_elem(file[f"uns/{keys.ABOUT}"]).items()}


@dataclass(frozen=True, eq=False)
class StoredPrediction:
    """A prediction read back; expression only where it was asked for."""

    path: Path
    about: dict[str, Any]
    names: Strings
    slide_id: str
    centres: NDArray[np.float64]
    codes: SparseCodes
    bank_spots: Strings
    y_init: Expression
    expression: Expression
    obs: Any
    """pandas DataFrame."""
    var: Any
    """pandas DataFrame."""
    spatial: dict[str, Any]
    """`uns['spatial'][slide]`."""
    obsm: dict[str, Any] = field(default_factory=dict)
    """Shares of the weight by section and patient and, of a tuned bank, scores of the regression."""
    bank_patients: Strings | None = None


def read_prediction(path: Path) -> StoredPrediction:
    """Reads a prediction.

    Raises:
        OutputError: as `read_about`.
    """
    import anndata

    about = read_about(path)
    with _opened(path) as file:
        read = {k: anndata.io.read_elem(file[k]) for k in ("obs", "var", "uns")}
        obsm = {k: anndata.io.read_elem(file[f"obsm/{k}"]) for k in (keys.SPATIAL, keys.WEIGHTS, keys.Y_INIT)}
        more = {k: anndata.io.read_elem(file[f"obsm/{k}"]) for k in _MORE if f"obsm/{k}" in file}
        values = np.asarray(file["X"][...], np.float32) if "X" in file else np.zeros((len(read["obs"]), 0), np.float32)
        present = np.asarray(file[_LAYER][...], np.bool_) if _LAYER in file else None
    obs, var, uns = read["obs"], read["var"], read["uns"]
    scale, names = Scale.from_name(about["unit"]), np.asarray(obs.index, np.str_)
    weights = obsm[keys.WEIGHTS].tocsr()
    (slide_id, spatial), *_ = uns[keys.SPATIAL].items()
    codes = SparseCodes(
        indptr=weights.indptr.astype(np.int64),
        indices=weights.indices.astype(np.int32),
        weights=weights.data.astype(np.float32),
        n_bank=weights.shape[1],
        gap=obs[keys.GAP].to_numpy(np.float64),
        passes=obs[keys.PASSES].to_numpy(np.float32),
        status=obs[keys.STATUS].to_numpy(np.str_),
    )
    genes = np.asarray(var.index, np.str_)
    anchors = _texts(uns[keys.ANCHORS])
    return StoredPrediction(
        path=path,
        about=about,
        names=names,
        slide_id=str(slide_id),
        centres=np.asarray(obsm[keys.SPATIAL], np.float64),
        codes=codes,
        bank_spots=_texts(uns[keys.BANK_OBS]),
        y_init=Expression(
            np.asarray(obsm[keys.Y_INIT], np.float32),
            names,
            anchors,
            Scale.from_name(about.get("y_init_unit", scale.name)),
        ),
        expression=Expression(values, names, genes, scale, present),
        obs=obs,
        var=var,
        spatial=spatial,
        obsm=more,
        bank_patients=_texts(uns[keys.BANK_PATIENTS]) if keys.BANK_PATIENTS in uns else None,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a .h5ad or .zarr prediction for reading; expected failures become `OutputError`."""
    import h5py
    import zarr

    if not path.exists():
        raise OutputError(f"{path}: no such file", "Give a file that `generag retrieve` wrote.")
    try:
        file = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}", "Run `generag retrieve` again.") from error
    try:
        yield file
    except GeneragError:
        raise
    except Exception as error:  # of a file that has no digest: libraries raise anything for what they cannot decode
        raise OutputError(
            f"{path} cannot be read: {type(error).__name__}: {error}", "Run `generag retrieve` again."
        ) from error
    finally:
        if isinstance(file, h5py.File):
            file.close()


def _texts(array: Any) -> Strings:
    """Strings as numpy's plain kind, from HDF5's objects or Zarr's StringDType."""
    return np.array([str(v) for v in array], np.str_)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
