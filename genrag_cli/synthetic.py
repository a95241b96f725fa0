"""Made-up slides, cohorts and solver problems with planted truth: raw material for the demo and the tests.

Knows how to draw something that passes for H&E at 1.2 um/px, how to plant gene programs in what is drawn, and two
layouts of files (legacy Spatial Transcriptomics, HEST). It reads nothing back. Nothing here is tissue: no number that
comes out of it says anything about how well generag does on real sections.

The truth that is planted. Four programs have a field over the section: TUM (dense, large, pale nuclei), STR (pink
fibres, thin nuclei), IMM (clusters of small dark nuclei), ADI (fat, holes). A spot's activity z of a program is the
mean of the field over its 100 um. Gene g of program k has, at spot s of patient q,

  count ~ Poisson(u rate),   u ~ Gamma(mean 1, variance .15),   rate = L_s exp(b_g + a_g z_ks + e_gq) / sum over genes,

with base b_g, loading a_g in 1.5..3.5 (0 for the HK, MT-, RPS and RPL genes), patient effect e_gq of sd .25, and
library size L_s = 4 G exp(TUM_s + IMM_s - .5 + noise of sd .3) for G genes: more nuclei, more counts.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import UsageError
from genrag_cli.types import Doubles, Floats, Ints, Strings

MPP = 1.2
"""um per pixel of every slide."""
PITCH_UM, SPOT_UM = 200.0, 100.0
"""Distance of neighbouring spots and their diameter, as in legacy Spatial Transcriptomics."""
PROGRAMS = ("TUM", "STR", "IMM", "ADI")
_GLASS = np.array([243.0, 240.0, 246.0])
_STAINS = np.array([[0.65, 0.70, 0.29], [0.09, 0.95, 0.28]])
"""Optical density (base 10) in R, G, B of the nuclear and the pink stain, before the patient's tint."""
_GRAIN = 8
"""Fields are drawn on a grid of so many pixels, and read in between."""


@dataclass(frozen=True, eq=False)
class MadeUpSection:
    """One drawn section, and what was planted in it."""

    name: str
    patient: str
    image: NDArray[np.uint8]
    """(h, w, 3) RGB at `MPP`."""
    array_xy: Ints
    """(n, 2) column, row of the spots in the lattice, from 1."""
    centres: Doubles
    """(n, 2) x, y in level-0 px."""
    counts: NDArray[np.int32]
    """(n, G)"""
    genes: Strings
    """(G,)"""
    activity: Doubles
    """(n, 4) mean of each program's field over the spot, columns as in `PROGRAMS`."""
    loadings: Doubles
    """(4, G) log-rate per unit of activity; the same in every section of a cohort."""


def write_cohort(
    folder: Path,
    *,
    patients: int = 3,
    sections_per_patient: int = 1,
    layout: Literal["legacy", "hest"] = "legacy",
    seed: int = 0,
    size_px: int = 2880,
    n_genes: int = 800,
) -> list[str]:
    """Draws a cohort and writes it.

    `legacy` gives images/NAME.tif, spots/NAME_selection.tsv and counts/NAME.tsv.gz (rows `XxY`); `hest` gives
    wsis/NAME.tif, st/NAME.h5ad and HEST_made_up.csv. NAME is PATIENT_SECTION, such as P1_1, P1_2, P2_1.
    The same arguments give the same pixels and counts.

    Returns:
        The names of the sections, in order.

    Raises:
        UsageError: for an unknown layout, or a size that holds no spots.
    """
    if layout not in ("legacy", "hest"):
        raise UsageError(f"layout {layout!r} is not known", "Use legacy or hest.")
    rows = []
    for patient in range(1, patients + 1):
        for number in range(1, sections_per_patient + 1):
            section = draw_section(patient, number, seed=seed, size_px=size_px, n_genes=n_genes)
            # An order of the genes of the section's own: they must be matched by name, never by position.
            order = np.random.default_rng([seed, patient, number]).permutation(n_genes)
            (_write_legacy if layout == "legacy" else _write_hest)(folder, section, order)
            rows.append(_describe(section))
    if layout == "hest":
        lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
        (folder / "HEST_made_up.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # BOM, as HEST's own
    return [row["id"] for row in rows]


def draw_section(patient: int, number: int, *, seed: int = 0, size_px: int = 2880, n_genes: int = 800) -> MadeUpSection:
    """Draws one section: image, spots on a lattice of 200 um within the tissue, counts.

    Args:
        patient: from 1; sets the tint of the stains and the patient's effect on each gene.
        number: of the section within the patient, from 1; sets the shape of everything.
        seed: of the cohort; sets the genes.
        size_px: side of the square slide at 1.2 um/px, at least 640.
        n_genes: at least 40.

    Raises:
        UsageError: where `size_px` holds no spots or `n_genes` no programs.
    """
    if size_px < 640 or n_genes < 40:
        raise UsageError(f"made-up section of {size_px} px with {n_genes} genes", "Take 640 px and 40 genes or more.")
    rng, by_patient = np.random.default_rng([seed, patient, number]), np.random.default_rng([seed, patient])
    fields, tissue = _grow_fields(size_px, rng)
    image = _paint(fields, size_px, by_patient, rng)

    pitch = PITCH_UM / MPP
    steps = np.arange(1, int(size_px / pitch))
    array_xy = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    centres = array_xy * pitch + (size_px - pitch * (len(steps) + 1)) / 2
    inside = _mean_over_spots(tissue, centres) > 0.8
    array_xy, centres = array_xy[inside], centres[inside]
    activity = np.stack([_mean_over_spots(field, centres) for field in fields], axis=1)
    genes, base, loadings = _invent_genes(n_genes, np.random.default_rng(seed))
    log_rate = base + activity @ loadings + by_patient.normal(0, 0.25, n_genes)
    return MadeUpSection(
        name=f"P{patient}_{number}",
        patient=f"P{patient}",
        image=image,
        array_xy=array_xy.astype(np.int64),
        centres=np.round(centres, 2),  # as the tables have them, so that every layout says the same
        counts=_count(log_rate, activity, rng),
        genes=genes,
        activity=activity,
        loadings=loadings,
    )


def solver_problem(
    m: int,
    n_bank: int,
    n_queries: int,
    seed: int = 0,
    *,
    n_active: int = 5,
    noise: float = 0.1,
    correlation: float = 0.5,
) -> tuple[Floats, Floats]:
    """Makes a small retrieval problem with correlated columns and nonnegative sparse truth.

    Args:
        m: rows of the dictionary.
        n_bank: columns of the dictionary.
        n_queries: number of right-hand sides.
        seed: of everything.
        n_active: columns that each query is mixed from, at most `n_bank`.
        noise: size of what the mixture leaves out, as a share of the query's length.
        correlation: share (0 to 1) of the variance that all columns draw from the same few directions.

    Returns:
        Dictionary (m, n_bank) with columns of length about 1, and queries (n_queries, m); float32.
    """
    rng = np.random.default_rng(seed)
    n_shared = max(1, m // 10)
    shared = rng.normal(size=(m, n_shared)) @ rng.normal(size=(n_shared, n_bank)) / np.sqrt(n_shared)
    own = rng.normal(size=(m, n_bank))
    dictionary = (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own) / np.sqrt(m)
    mixing = rng.uniform(0.2, 1.0, (n_queries, n_bank))
    mixing[rng.uniform(size=mixing.shape).argsort(axis=1) >= n_active] = 0
    queries = mixing @ dictionary.T
    miss = rng.normal(size=queries.shape)
    queries += noise * miss * np.linalg.norm(queries, axis=1, keepdims=True) / np.linalg.norm(miss, axis=1)[:, None]
    return dictionary.astype(np.float32), queries.astype(np.float32)


def _smooth_noise(side: int, sigma: float, rng: np.random.Generator) -> Floats:
    """(side, side) smooth field of mean 0 and sd 1."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), sigma, mode="wrap")
    return np.asarray((field - field.mean()) / field.std())


def _grow_fields(size_px: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(4, g, g) fields of the programs in 0..1, and (g, g) tissue in 0..1, on the coarse grid."""
    side = -(-size_px // _GRAIN)
    um = MPP * _GRAIN
    tumour, fat = (_smooth_noise(side, 260 / um, rng) for _ in range(2))
    shares = np.exp(np.stack([3.0 * tumour, np.full_like(fat, 0.4), 3.0 * fat - 1.5]))
    shares /= shares.sum(axis=0)
    immune = (1 - shares[2]) / (1 + np.exp(-4 * (_smooth_noise(side, 110 / um, rng) - 1.0)))
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    edge = 0.45 + 0.02 * _smooth_noise(side, 200 / um, rng) - (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3)
    tissue = 1 / (1 + np.exp(-np.clip(edge * side * 4, -30, 30)))
    fields = np.stack([shares[0], shares[1], immune, shares[2]]) * tissue
    return fields.astype(np.float32), tissue.astype(np.float32)


def _mean_over_spots(field: Floats, centres: NDArray[Any]) -> Doubles:
    from scipy.ndimage import map_coordinates, uniform_filter

    mean = uniform_filter(field, max(1, round(SPOT_UM / (MPP * _GRAIN))))
    return np.asarray(map_coordinates(mean, (centres[:, ::-1] / _GRAIN - 0.5).T, order=1, mode="nearest"), np.float64)


def _invent_genes(n_genes: int, rng: np.random.Generator) -> tuple[Strings, Doubles, Doubles]:
    """Names (G,), base log-rates (G,) and loadings (4, G): an eighth of the genes to each program."""
    per_program = n_genes // 8
    kinds = [*PROGRAMS, "MT-", "RPS", "RPL", "HK"]
    sizes = [per_program] * 4 + [5, 5, 5]
    sizes.append(n_genes - sum(sizes))
    names = [f"{kind}{i + 1:03d}" for kind, size in zip(kinds, sizes, strict=True) for i in range(size)]
    loadings = np.zeros((4, n_genes))
    for k in range(4):
        loadings[k, k * per_program : (k + 1) * per_program] = rng.uniform(1.5, 3.5, per_program)
    base = rng.normal(0, 1.0, n_genes)
    base[4 * per_program : 4 * per_program + 15] += 2
    return np.array(names), base, loadings


def _count(log_rate: Doubles, activity: Doubles, rng: np.random.Generator) -> NDArray[np.int32]:
    n, n_genes = log_rate.shape
    rate = np.exp(log_rate)
    library = 4 * n_genes * np.exp(activity[:, 0] + activity[:, 2] - 0.5 + rng.normal(0, 0.3, n))
    rate *= (library / rate.sum(axis=1))[:, None]
    return rng.poisson(rate * rng.gamma(1 / 0.15, 0.15, rate.shape)).astype(np.int32)


def _enlarge(field: Floats, size_px: int) -> Floats:
    from scipy.ndimage import zoom

    return np.asarray(zoom(field, _GRAIN, order=1, grid_mode=True, mode="nearest")[:size_px, :size_px])


def _paint(
    fields: Floats, size_px: int, by_patient: np.random.Generator, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(size_px, size_px, 3) RGB: pink ground and fibres, holes of fat, nuclei, then optical density to light."""
    tumour, stroma, immune, fat = (_enlarge(field, size_px) for field in fields)
    bend, coarse = (_enlarge(_smooth_noise(fields.shape[1], sigma, rng), size_px) for sigma in (14, 2.5))
    across = np.arange(size_px, dtype=np.float32)
    along = 0.5 * across[None, :] + 0.34 * across[:, None] + 12 * bend
    fibres = 0.6 * np.sin(along + 2 * coarse) + 0.4 * np.sin(0.37 * along - 5 * bend)
    ground = 0.20 * tumour + stroma * (0.30 + 0.10 * fibres) + 0.04 * immune + 0.22 * fat

    holes = np.zeros_like(ground)
    centres = _pack(fat, 54 / MPP, rng)
    _stamp(holes, centres, 26 / MPP * rng.uniform(0.85, 1.0, (len(centres), 2)), np.ones(len(centres)), 8.0, rng=rng)
    nuclei = np.zeros_like(ground)
    for field, per_mm2, radii_um, darkness in (
        (tumour, 4200.0, (4.6, 3.8), 0.38),
        (stroma, 1100.0, (6.0, 1.7), 0.50),
        (immune, 11000.0, (2.9, 2.7), 0.65),
    ):
        centres = _scatter(field, per_mm2, rng)
        radii = np.array(radii_um) / MPP * rng.uniform(0.75, 1.25, (len(centres), 1))
        _stamp(nuclei, centres, radii, darkness * rng.uniform(0.8, 1.2, len(centres)), 3.0, rng=rng)
    nuclei *= 1 - holes
    pink = ground * (1 - 0.97 * holes) * (1 - 0.5 * nuclei) * (1 + 0.12 * coarse)
    blue = (0.07 * tumour + 0.02 * stroma + 0.04 * immune) * (1 - holes) + nuclei
    amounts = np.stack([blue, pink], axis=-1)
    amounts *= 1 + 0.10 * rng.standard_normal(amounts.shape, dtype=np.float32)

    tint = _STAINS * by_patient.uniform(0.93, 1.07, (2, 3)) * by_patient.uniform(0.85, 1.2, (2, 1))
    light: Floats = _GLASS.astype(np.float32) * np.exp(amounts @ (-np.log(10) * tint).astype(np.float32))
    light += rng.standard_normal((size_px, size_px, 1), dtype=np.float32)
    return np.clip(light, 0, 255).astype(np.uint8)


def _scatter(density: Floats, per_mm2: float, rng: np.random.Generator) -> Doubles:
    """(k, 2) x, y in px: points at random, `per_mm2` of them where the density is 1."""
    size = density.shape[0]
    points = rng.uniform(0, size, (int(per_mm2 * (size * MPP / 1000) ** 2), 2))
    kept = rng.uniform(size=len(points)) < density[points[:, 1].astype(int), points[:, 0].astype(int)]
    return np.asarray(points[kept])


def _pack(share: Floats, spacing: float, rng: np.random.Generator) -> Doubles:
    """(k, 2) x, y in px: a loose hexagonal packing, where there is mostly fat."""
    size = share.shape[0]
    y, x = np.mgrid[: size / spacing * 1.16, : size / spacing + 1]
    points = np.stack([(x - 0.5 * (y % 2)).ravel(), 0.87 * y.ravel()], axis=1) * spacing
    points += rng.normal(0, 0.06 * spacing, points.shape)
    points = points[((points >= 0) & (points < size)).all(axis=1)]
    return np.asarray(points[share[points[:, 1].astype(int), points[:, 0].astype(int)] > 0.45])


def _stamp(
    canvas: Floats, centres: Doubles, radii: Doubles, depth: Doubles, sharpness: float, *, rng: np.random.Generator
) -> None:
    """Draws soft ellipses into the (h, w) canvas, the darker winning; those that would cross its edge are left out.

    Centres and half axes are (k, 2) in px, depths (k,); the sharper, the steeper the edge (1 is a cone). The angles
    are random around the direction of the fibres.
    """
    reach = int(np.ceil(radii.max(initial=0.0)))
    ij = centres[:, ::-1].astype(int)
    fits = ((ij >= reach) & (ij < np.array(canvas.shape) - reach)).all(axis=1)
    ij, depth, radii = ij[fits], depth[fits].astype(np.float32), radii[fits].astype(np.float32)
    angle = rng.normal(-0.97, 0.5, len(ij)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    flat = canvas.reshape(-1)
    start = ij[:, 0] * canvas.shape[1] + ij[:, 1]
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            far = np.hypot((dx * cos + dy * sin) / radii[:, 0], (dy * cos - dx * sin) / radii[:, 1])
            near = far < 1
            at = start[near] + dy * canvas.shape[1] + dx
            flat[at] = np.maximum(flat[at], depth[near] * np.minimum(1, sharpness * (1 - far[near])))


def _write_slide(path: Path, image: NDArray[np.uint8]) -> None:
    """A tiled pyramid that OpenSlide and tifffile open, JPEG within, the pixel size in its resolution tags."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    packing = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(path) as writer:
        for level in range(10):
            per_cm = 1e4 / (MPP * 2**level)
            size = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "subfiletype": int(level > 0)}
            writer.write(image, **packing, **size, metadata=None)
            if min(image.shape[:2]) < 512:
                break
            h, w = image.shape[0] // 2, image.shape[1] // 2
            quads = image[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3)
            image = (quads.sum(axis=(1, 3), dtype=np.uint16) // 4).astype(np.uint8)


def _write_legacy(folder: Path, section: MadeUpSection, order: Ints) -> None:
    _write_slide(folder / "images" / f"{section.name}.tif", section.image)
    for part in ("spots", "counts"):
        (folder / part).mkdir(exist_ok=True)
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for (x, y), (px, py) in zip(section.array_xy, section.centres, strict=True):
        lines.append(f"{x}\t{y}\t{x:.3f}\t{y:.3f}\t{px:.2f}\t{py:.2f}\t1")
    (folder / "spots" / f"{section.name}_selection.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["\t".join(["", *section.genes[order]])]
    for (x, y), counts in zip(section.array_xy, section.counts[:, order].tolist(), strict=True):
        lines.append("\t".join([f"{x}x{y}", *map(str, counts)]))
    text = ("\n".join(lines) + "\n").encode()
    # No time stamp within: the same arguments give the same bytes.
    (folder / "counts" / f"{section.name}.tsv.gz").write_bytes(gzip.compress(text, 5, mtime=0))


def _write_hest(folder: Path, section: MadeUpSection, order: Ints) -> None:
    """The AnnData on-disk format by hand: HEST keeps counts in X, pixel centres in obsm['spatial']."""
    import h5py
    from scipy.sparse import csr_matrix

    _write_slide(folder / "wsis" / f"{section.name}.tif", section.image)
    (folder / "st").mkdir(exist_ok=True)
    counts = csr_matrix(section.counts[:, order].astype(np.float32))
    column, row = section.array_xy.T
    obs = {
        "_index": np.array([f"{y:03d}x{x:03d}" for x, y in section.array_xy], object),
        "array_row": row,
        "array_col": column,
        "pxl_row_in_fullres": section.centres[:, 1],
        "pxl_col_in_fullres": section.centres[:, 0],
    }
    with h5py.File(folder / "st" / f"{section.name}.h5ad", "w") as file:
        _tag(file, "anndata", "0.1.0")
        x = _tag(file.create_group("X"), "csr_matrix", "0.1.0", shape=counts.shape)
        for part in ("data", "indices", "indptr"):
            x.create_dataset(part, data=getattr(counts, part), compression="gzip")
        for name, columns in (("obs", obs), ("var", {"_index": section.genes[order].astype(object)})):
            frame = _tag(file.create_group(name), "dataframe", "0.2.0", _index="_index")
            frame.attrs["column-order"] = np.array([c for c in columns if c != "_index"], h5py.string_dtype())
            for column_name, values in columns.items():
                kind = "string-array" if values.dtype == object else "array"
                _tag(frame.create_dataset(column_name, data=values), kind, "0.2.0")
        obsm = _tag(file.create_group("obsm"), "dict", "0.1.0")
        _tag(obsm.create_dataset("spatial", data=section.centres), "array", "0.2.0")


def _tag(element: Any, kind: str, version: str, **attributes: Any) -> Any:
    element.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return element


def _describe(section: MadeUpSection) -> dict[str, Any]:
    """A row of HEST's table of samples, its columns in part."""
    return {
        "dataset_title": "Made-up sections",
        "id": section.name,
        "image_filename": f"{section.name}.tif",
        "species": "Homo sapiens",
        "patient": section.patient,
        "st_technology": "Spatial Transcriptomics",
        "inter_spot_dist": PITCH_UM,
        "nb_genes": len(section.genes),
        "pixel_size_um_embedded": MPP,
        "pixel_size_um_estimated": MPP,
        "fullres_px_width": section.image.shape[1],
        "fullres_px_height": section.image.shape[0],
    }
