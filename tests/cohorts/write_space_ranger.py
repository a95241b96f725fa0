"""Space Ranger outputs on disk, made up: matrices, lists of positions and whole sections of each release."""

import gzip
import json
from pathlib import Path

import numpy as np

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
GENE = "Gene Expression"
FEATURES = [
    ("ENSG01", "ACTB", GENE),
    ("ENSG02", "ERBB2", GENE),
    ("ENSG03", "ACTB", GENE),
    ("ENSG04", "KRT19", GENE),
    ("CD3", "CD3", "Antibody Capture"),
]


def write_h5(path, counts, barcodes, features=FEATURES, *, genome="GRCh38", per_genome=False, data_dtype=np.int32):
    """Counts (n, G) as Cell Ranger 3 stores them (`matrix`), or as Cell Ranger 2 did (a group per genome)."""
    import h5py
    from scipy import sparse

    matrix = sparse.csr_matrix(counts)
    text = [np.array([row[i].encode() for row in features], dtype="S") for i in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group(genome if per_genome else "matrix")
        group["barcodes"] = np.array([b.encode() for b in barcodes], dtype="S")
        group["data"] = matrix.data.astype(data_dtype)
        group["indices"], group["indptr"] = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape[::-1], np.int32)
        if per_genome:
            group["genes"], group["gene_names"] = text[0], text[1]
        else:
            for name, values in zip(("id", "name", "feature_type"), text, strict=True):
                group[f"features/{name}"] = values
            group["features/genome"] = np.array([genome.encode()] * len(features), dtype="S")
    return path


def write_mtx(folder, counts, barcodes, features=FEATURES, *, packed=True, genes=False):
    """Counts (n, G) as an MTX folder; `genes` writes the two columns of genes.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = np.asarray(counts.todense() if hasattr(counts, "todense") else counts)
    spots, columns = np.nonzero(dense)
    kind = "integer" if dense.dtype.kind in "iu" else "real"
    entries = [f"{g + 1} {s + 1} {dense[s, g]}" for s, g in zip(spots, columns, strict=True)]
    size = f"{dense.shape[1]} {dense.shape[0]} {len(entries)}"
    matrix = [
        f"%%MatrixMarket matrix coordinate {kind} general",
        '%metadata_json: {"format_version": 2}',
        size,
        *entries,
    ]
    rows = ["\t".join(row[: 2 if genes else 3]) for row in features]
    tables = {"matrix.mtx": matrix, "barcodes.tsv": barcodes, "genes.tsv" if genes else "features.tsv": rows}
    for name, lines in tables.items():
        text = ("\n".join(lines) + "\n").encode()
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(gzip.compress(text) if packed else text)
    return folder


def write_positions(spatial, rows, style):
    """Rows of the six columns as `1` (no header), `2` (header), `header in list`, `packed` or `parquet`."""
    import pandas as pd

    spatial.mkdir(parents=True, exist_ok=True)
    lines = [",".join(str(v) for v in row) for row in rows]
    header = [",".join(COLUMNS)]
    if style == "parquet":
        path = spatial / "tissue_positions.parquet"
        pd.DataFrame(rows, columns=COLUMNS).to_parquet(path, index=False)
        return path
    if style == "packed":
        path = spatial / "GSM1_tissue_positions_list.csv.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        return path
    path = spatial / ("tissue_positions.csv" if style == "2" else "tissue_positions_list.csv")
    path.write_text("\n".join(lines if style == "1" else header + lines) + "\n")
    return path


def write_preview(path, *, blank=False):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 3] = 255
    if not blank:
        pixels[2:5, 3:6, 0] = 90
    Image.fromarray(pixels).save(path)
    return path


def hexagonal_array(n_rows=6, n_cols=12, pitch=138.0, origin=(1000, 2000), angle=0.0):
    """Rows of positions without barcode: array row, array column, pixel row, pixel column; row by row."""
    rc = np.array([(r, c) for r in range(n_rows) for c in range(r % 2, n_cols, 2)])
    x, y = rc[:, 1] * pitch / 2, rc[:, 0] * pitch * np.sqrt(3) / 2
    turned = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    return rc, np.stack([turned[1] + origin[1], turned[0] + origin[0]], axis=1)


def barcode_of(i):
    return "".join("ACGT"[(i >> 2 * k) & 3] for k in range(8)) + "-1"


def write_visium(
    root, name="P1", *, outs=True, style="2", matrix="h5", kind="filtered", library="", image=True, seed=0,
    features=FEATURES, genome="GRCh38", preview=None, pitch=138.0,
):  # fmt: skip
    """A section of 36 spots, the first four not in tissue; a filtered matrix holds the others in another order."""
    home = Path(root) / name
    folder = home / "outs" if outs else home
    rc, yx = hexagonal_array(pitch=pitch)
    barcodes = [barcode_of(i) for i in range(len(rc))]
    rows = [
        (b, int(i >= 4), int(r), int(c), round(y), round(x))
        for i, (b, (r, c), (y, x)) in enumerate(zip(barcodes, rc, yx, strict=True))
    ]
    write_positions(folder / "spatial", rows, style)
    facts = {"spot_diameter_fullres": 0.65 * pitch, "tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(facts))
    there = [*range(len(rc) - 1, 3, -1)] if kind == "filtered" else [*range(len(rc))]
    counts = np.random.default_rng(seed).poisson(1, (len(rc), len(features)))[there]
    path = folder / f"{library}{kind}_feature_bc_matrix"
    listed = [barcodes[i] for i in there]
    if matrix == "h5":
        write_h5(path.with_suffix(".h5"), counts, listed, features, genome=genome)
    else:
        write_mtx(path, counts, listed, features, packed=matrix == "mtx")
    if preview is not None:
        write_preview(folder / "spatial" / "tissue_hires_image.png", blank=preview == "blank")
    if image:
        (home / f"{name}.tif").write_bytes(b"not opened by cohorts")
    return Path(root)


def write_hd(
    root, name="H1", *, outs=True, bins=(16,), n=20, mpp=0.25, angle=0.0, gap=True, image=True, style="parquet",
    stated=True, matrix="h5",
):  # fmt: skip
    """A section of n x n bins of 16 um (4 n x 4 n of 4 um for side 4), counts 1 for ACTB everywhere in tissue.

    The bins of the first array row are not in tissue, nor, with `gap`, a block of 8 x 8; other genes have a count in
    a bin where (array row + column) divides by their column number.
    """
    home = Path(root) / name
    outs_folder = home / "outs" if outs else home
    for side in bins:
        folder = outs_folder / "binned_outputs" / f"square_{side:03d}um"
        m = n * 16 // side
        row, col = (a.ravel() for a in np.mgrid[0:m, 0:m])
        in_gap = gap & (row * side >= 128) & (row * side < 256) & (col * side >= 128) & (col * side < 256)
        tissue = (row > 0) & ~in_gap
        x, y = ((a + 0.5) * side / mpp for a in (col, row))
        x, y = x * np.cos(angle) - y * np.sin(angle) + 900.0, x * np.sin(angle) + y * np.cos(angle) + 500.0
        barcodes = [f"s_{side:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]
        rows = [
            *zip(barcodes, tissue.astype(int).tolist(), row.tolist(), col.tolist(), y.tolist(), x.tolist(), strict=True)
        ]
        write_positions(folder / "spatial", rows, style)
        facts = {"spot_diameter_fullres": side / mpp, "bin_size_um": float(side), "microns_per_pixel": mpp}
        (folder / "spatial" / "scalefactors_json.json").write_text(
            json.dumps(facts if stated else {"bin_size_um": side})
        )
        counts = np.array(
            [[(r + c) % (g + 1) == 0 for g in range(len(FEATURES))] for r, c in zip(row, col, strict=True)]
        )
        kept = np.flatnonzero(tissue)
        listed = [barcodes[i] for i in kept]
        target = folder / "filtered_feature_bc_matrix"
        if matrix == "h5":
            write_h5(target.with_suffix(".h5"), counts[kept].astype(np.int32), listed, genome="mm10")
        else:
            write_mtx(target, counts[kept].astype(np.int32), listed)
    if image:
        (outs_folder / f"{name}_image.tif").write_bytes(b"not opened by cohorts")
    return Path(root)
