"""Real sections in three layouts: the same bank, spot for spot."""

import contextlib

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from genrag_cli.cli.app import app
from genrag_cli.cohorts import open_cohort
from genrag_cli.stores.bank import Bank

pytestmark = pytest.mark.real
SECTIONS = ("C2", "C5")


def generag(*args):
    done = CliRunner().invoke(app, [str(a) for a in args], prog_name="generag")
    assert done.exit_code == 0, done.stderr


@contextlib.contextmanager
def large_pictures():
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def write_as_hest(section, root):
    """The section as HEST-1k has it, its genes in another order; pixels unchanged."""
    measured = section.load()
    order = np.random.default_rng(0).permutation(len(measured.genes))
    obs = pd.DataFrame(dict(zip(("array_row", "array_col"), measured.array_rc.T, strict=True)), index=measured.names)
    for folder in ("st", "wsis"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    counts = measured.counts[:, order].astype(np.float32)
    adata = anndata.AnnData(counts, obs, pd.DataFrame(index=measured.genes[order]), obsm={"spatial": measured.centres})
    adata.write_h5ad(root / "st" / f"{section.name}.h5ad")
    with large_pictures(), Image.open(section.slide) as picture:
        tifffile.imwrite(root / "wsis" / f"{section.name}.tif", np.asarray(picture), tile=(512, 512), photometric="rgb")


@pytest.fixture(scope="module")
def banks(shared_data, tmp_path_factory):
    """The same two sections from legacy tables, from HEST-1k, and from a table."""
    folder = tmp_path_factory.mktemp("layouts")
    cohort = open_cohort(shared_data / "her2st")
    for name in SECTIONS:
        write_as_hest(cohort.section(name), folder / "hest")
    lines = ["id,st_technology,species,patient,dataset_title"]
    lines += [f"{name},Spatial Transcriptomics,Homo sapiens,C,her2st" for name in SECTIONS]
    (folder / "hest" / "HEST_v1_1_0.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    generag("cohort", "scan", shared_data / "her2st", "--out", folder / "cohort.csv")
    others = [v for s in cohort.sections if s.name not in SECTIONS for v in ("--exclude", s.name)]
    legacy, table = shared_data / "her2st", folder / "cohort.csv"
    sources = {"legacy": (legacy, *others), "hest": (folder / "hest",), "table": (table, *others)}
    for name, source in sources.items():
        common = ("--patients", "letter", "--backbone", "stain", "-q", "--bank", folder / f"{name}.zarr")
        generag("build-bank", *source, *common)
    return {name: Bank.open(folder / f"{name}.zarr", "stain") for name in sources}


@pytest.mark.parametrize("other", ["hest", "table"])
def test_real_sections_make_one_bank_in_every_layout(banks, other):
    one, two = banks["legacy"], banks[other]
    assert one.genes.tolist() == two.genes.tolist()
    assert one.anchors.tolist() == two.anchors.tolist()
    assert one.spot_names.tolist() == two.spot_names.tolist()
    assert one.patient_of.tolist() == two.patient_of.tolist()
    for (_, counts, totals), (_, others, sums) in zip(one.count_blocks(), two.count_blocks(), strict=True):
        assert (counts != others).nnz == 0
        np.testing.assert_array_equal(totals, sums)
    for mine, theirs in zip(one.embeddings, two.embeddings, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for path, values in one.derived.items():
        np.testing.assert_allclose(values, two.derived[path], rtol=1e-6, atol=1e-9, err_msg=path)


def test_the_pixel_size_of_real_sections_is_that_of_the_pitch_in_every_layout(banks):
    for bank in banks.values():
        for section in bank.sections:
            assert section["pixel_size"]["source"] == "spot pitch"
            assert section["pixel_size"]["mpp"] == pytest.approx(0.69, rel=0.02)
