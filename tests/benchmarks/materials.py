"""What `fuzz.py` damages: slides in several containers, real ones where they are, a bank, and what commands write.

Everything is made by generag, in processes forked from this one. Knows files and command lines; damages nothing.
"""

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from content import read_output
from forked import run
from kill import HELD
from setting import write_slide

MPP = "1.2"
QUICK = ("--backbone", "stain", "--workers", "1", "--alpha", "0.003")
"""The last two are `retrieve`'s alone."""
REAL = (
    "wsi/CMU-1-Small-Region.svs", "wsi/dicom_cmu1_small", "wsi/openslide_fixtures/boxes.tiff",
    "wsi/openslide_fixtures/small.svs",
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """Whole files, and what comes of them."""

    good: Path
    """A slide."""
    slides: tuple[Path, ...]
    """To be damaged."""
    bank: Path
    out: Path
    """Folder of an undisturbed `retrieve` of `good`."""
    out_zarr: Path
    """The same with a prediction in Zarr."""
    expected: dict[str, dict[str, str]]
    """Digests of what is in `out`, by the ending of the file."""
    truth: Path
    spot: str
    """One of the prediction's."""
    foreign: tuple[tuple[Path, tuple[str, ...]], ...]
    """Files of other tools, and commands that read them: FILE and OUT stand for places."""


def make_materials(folder: Path, shared_data: Path) -> Materials:
    """Makes everything."""
    from genrag_cli.synthetic import write_cohort

    cohort, bank = folder / "cohort", folder / "bank.zarr"
    write_cohort(cohort, size_px=1000, n_genes=60)
    build = ["build-bank", str(cohort), "--patients", "prefix", "--exclude", HELD, "--bank", str(bank), "-q"]
    _make([*build, *QUICK[:-2]])
    good = folder / "good.tif"
    shutil.copy(cohort / "images" / f"{HELD}.tif", good)
    out, out_zarr = folder / "out", folder / "out_zarr"
    retrieve = ["retrieve", str(good), "--bank", str(bank), *QUICK, "-q", "--no-overlay", "--out"]
    _make([*retrieve, str(out)])
    _make([*retrieve, str(out_zarr / "good.stain.zarr")])
    section = f"{cohort}:{HELD}"
    spots = folder / "spots"
    _make([*retrieve, str(spots), "--spots", section])
    expected = {ending: read_output(out / f"good.stain.{ending}", ending) for ending in ("h5ad", "zarr.zip")}
    slides = (*_write_slides(good, folder / "slides"), *(p for p in map(shared_data.joinpath, REAL) if p.exists()))
    truth, foreign = _write_foreign(folder / "foreign", spots, section, good, bank)
    spot = _first_name(out / "good.stain.h5ad")
    return Materials(good, slides, bank, out, out_zarr, expected, truth, spot, foreign)


def _make(command: list[str]) -> None:
    ran = run(command)
    assert ran.code == 0, ran.err


def link_tree(source: Path, target: Path) -> Path:
    """A folder whose files are hard links; whoever changes one takes the link away first, as generag does."""
    shutil.copytree(source, target, copy_function=_link)
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


def _write_slides(good: Path, folder: Path) -> list[Path]:
    """The pixels of a slide in the containers of several scanners and tools."""
    import tifffile
    from PIL import Image

    image, per_cm = tifffile.imread(good), 1e4 / float(MPP)
    folder.mkdir()
    write_slide(folder / "pyramid.tif", image, float(MPP))
    about: dict[str, Any] = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(folder / "strips.tif", image, compression="lzw", **about)
    tifffile.imwrite(folder / "big.tif", image, bigtiff=True, tile=(256, 256), compression="zlib", **about)
    tifffile.imwrite(folder / "motorola.tif", image, byteorder=">", tile=(128, 128), compression="deflate", **about)
    tifffile.imwrite(
        folder / "ome.ome.tif", image, tile=(256, 256), compression="jpeg", photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": float(MPP), "PhysicalSizeY": float(MPP)},
    )  # fmt: skip
    Image.fromarray(image).save(folder / "picture.png")
    return sorted(folder.iterdir())


def _write_foreign(
    folder: Path, out: Path, section: str, good: Path, bank: Path
) -> tuple[Path, tuple[tuple[Path, tuple[str, ...]], ...]]:
    """What other tools would write about the spots of a section, and commands that read it."""
    import anndata
    import h5py
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image

    from genrag_cli.cohorts import open_section
    from genrag_cli.stores.embeddings import read_embeddings

    folder.mkdir()
    made = read_embeddings(out / "good.stain.spots.zarr.zip")
    names, centres = made.grid.names.tolist(), made.grid.level0
    counts = open_section(section).load()
    table = pd.DataFrame(made.values, index=pd.Index(names, name="name"))
    table.columns = [f"f{i}" for i in table]
    guess = pd.DataFrame(counts.counts.toarray(), index=pd.Index(counts.names.tolist(), name="name"))
    guess.columns = counts.genes.tolist()
    guess = guess.loc[names]
    np.savez(folder / "f.npz", features=made.values, names=made.grid.names, centres=centres)
    table.to_csv(folder / "f.csv")
    table.to_parquet(folder / "f.parquet")
    features = anndata.AnnData(made.values, obs=pd.DataFrame(index=names), obsm={"spatial": centres})
    features.write_h5ad(folder / "f.h5ad")
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on what the next release will shard by itself
        features.write_zarr(folder / "f.zarr")
    torch.save(torch.from_numpy(made.values), folder / "f.pt")
    side = round(made.grid.side_px)
    with h5py.File(folder / "trident.h5", "w") as file:
        file["features"], file["coords"] = made.values, np.round(centres - side / 2).astype(np.int64)
        file["coords"].attrs.update({"patch_size_level0": side, "patch_size": 256})
    with h5py.File(folder / "hest.h5", "w") as file:
        file["embeddings"], file["coords"] = made.values, np.round(centres - side / 2).astype(np.int64)
        file["barcodes"] = made.grid.names.astype("S")[:, None]
    shutil.copy(out / "good.stain.spots.zarr.zip", folder / "own.zarr.zip")
    guess.to_csv(folder / "g.csv")
    measured = anndata.AnnData(counts.counts.astype(np.float32), obs=pd.DataFrame(index=counts.names.tolist()))
    measured.var_names, measured.obsm["spatial"] = counts.genes.tolist(), counts.centres
    truth = folder / "truth.h5ad"
    measured.write_h5ad(truth)
    spots = folder / "spots.csv"
    pd.DataFrame(centres, index=pd.Index(names, name="name"), columns=["x", "y"]).to_csv(spots)
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    Image.new("L", (500, 500), 255).save(folder / "mask.png")
    (folder / "tissue.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": '
        '{"type": "Polygon", "coordinates": [[[200, 200], [800, 200], [800, 700], [200, 800], [200, 200]]]}}]}'
    )
    tail = ("--bank", str(bank), *QUICK, "--out", "OUT")
    from_rows = ("retrieve", "--features", "FILE", "--spots", str(spots), "--mpp", MPP, *tail)
    with_slide = ("retrieve", str(good), "--no-overlay")
    prediction = str(out / "good.stain.h5ad")
    beside = ("--names-from", str(folder / "names.txt"))
    rows = ("f.npz", "f.csv", "f.parquet", "f.h5ad", "f.h5ad", "f.zarr", "trident.h5", "hest.h5", "own.zarr.zip")
    return truth, (
        *((folder / name, from_rows) for name in rows),
        (folder / "f.pt", (*from_rows, *beside)),
        *((folder / n, (*with_slide, "--spots", str(spots), "--anchors-from", "FILE", *tail)) for n in ("g.csv",)),
        (truth, (*with_slide, "--spots", str(spots), "--anchors-from", "FILE", "--anchors-scale", "counts", *tail)),
        (truth, ("evaluate", prediction, "--truth", "FILE", "--json")),
        (truth, ("evaluate", prediction, "--truth", "FILE", "--json")),
        (truth, ("plot", prediction, "--truth", "FILE", "--out", "OUT.png")),
        (spots, (*with_slide, "--spots", "FILE", *tail)),
        (folder / "mask.png", (*with_slide, "--tissue", "FILE", *tail)),
        (folder / "tissue.geojson", (*with_slide, "--tissue", "FILE", *tail)),
        (folder / "names.txt", ("retrieve", "--features", str(folder / "f.pt"), "--spots", str(spots), "--mpp", MPP,
                                "--names-from", "FILE", *tail)),
    )  # fmt: skip


def _first_name(prediction: Path) -> str:
    import anndata

    return str(anndata.read_h5ad(prediction).obs_names[0])
