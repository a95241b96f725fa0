"""Small cohorts on disk, made up: one writer per format."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

GENES = ("ACTB", "ERBB2", "MT-CO1", "RPS3", "KRT19")


def _legacy(root: Path, name: str = "C2", *, side: int = 3, image: bool = True, genes: tuple[str, ...] = GENES) -> Path:
    """A section of side x side spots at 290 px; the position table has one spot that has no counts."""
    spots = [(x, y) for y in range(10, 10 + side) for x in range(20, 20 + side)]
    rows = [f"{x}x{y}\t" + "\t".join(str((x * y + g) % 4) for g in range(len(genes))) for x, y in spots]
    for folder in ("counts", "spots", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with gzip.open(root / "counts" / f"{name}.tsv.gz", "wt") as out:
        out.write("\n".join(["\t" + "\t".join(genes), *rows]) + "\n")
    places = [f"{x}\t{y}\t{x}.1\t{y}.1\t{x * 290.5}\t{y * 290.0}\t1" for x, y in [*spots, (90, 91)]]
    (root / "spots" / f"{name}_selection.tsv").write_text(
        "\n".join(["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected", *places]) + "\n"
    )
    if image:
        (root / "images" / f"{name}.jpg").write_bytes(b"not opened by cohorts")
    return root


def _hest(
    root: Path,
    name: str = "T1",
    *,
    dense: bool = False,
    genes: tuple[str, ...] = GENES,
    slide: bool = True,
    metadata: dict[str, object] | None = None,
    spatial: bool = True,
    factor: float = 1,
    indices: bool = True,
) -> Path:
    """A section of 12 spots on a 3 x 4 lattice of 200 px, x before y, as HEST-1k lays it out."""
    import anndata
    import pandas as pd
    from scipy import sparse

    row, col = (a.ravel() for a in np.mgrid[0:3, 0:4])
    values = np.random.default_rng(len(genes)).poisson(2, (12, len(genes))).astype(np.float32) * factor
    data = anndata.AnnData(
        values if dense else sparse.csr_matrix(values),
        obs=pd.DataFrame(
            {"array_row": row + 5, "array_col": col} if indices else {}, index=[f"spot{i}-1" for i in range(12)]
        ),
        var=pd.DataFrame(
            {"gene_ids": [f"ENSG{i}" for i in range(len(genes))]}, index=[f"unique{i}" for i in range(len(genes))]
        ),
    )
    data.var.index = list(genes)
    if spatial:
        data.obsm["spatial"] = np.stack([col * 200 + 50, row * 200 + 30], axis=1)
    for folder in ("st", "wsis", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    data.write_h5ad(root / "st" / f"{name}.h5ad")
    if slide:
        (root / "wsis" / f"{name}.tif").write_bytes(b"not opened by cohorts")
    if metadata is not None:
        (root / "metadata" / f"{name}.json").write_text(json.dumps(metadata))
    return root


@pytest.fixture
def write_legacy() -> Callable[..., Path]:
    return _legacy


@pytest.fixture
def write_hest() -> Callable[..., Path]:
    return _hest
