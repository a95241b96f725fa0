"""A finished bank of two small sections."""

import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli.pipeline.anchors import summarise
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import BackboneCard


@pytest.fixture(scope="session")
def small_bank(tmp_path_factory):
    """Sections A and B of 20 spots, 12 genes, embeddings of 4 numbers by `stain`, and one version."""
    writer, rng = BankWriter(tmp_path_factory.mktemp("small") / "b.zarr"), np.random.default_rng(0)
    genes, spots = np.array([f"G{i}" for i in range(12)]), np.array([f"{i}x{i}" for i in range(20)])
    geometry = {"fov_um": 200.0, "pitch_um": 200.0, "spot_um": 100.0}
    writer.create(genes=genes, gene_ids=None, geometry=geometry, train=["T"])
    for name in "AB":
        counts = sp.csr_matrix(rng.poisson(1, (20, 12)).astype(np.int32))
        totals = np.asarray(counts.sum(axis=1), float).ravel()
        writer.add_section(
            name, names=spots, counts=counts, totals=totals, centres=np.arange(40.0).reshape(20, 2),
            array_rc=np.arange(40).reshape(20, 2), statistics=summarise(counts, totals, None),
            entry={"key": name, "patient": name},
        )  # fmt: skip
        values = rng.normal(size=(20, 4)).astype(np.float32)
        writer.add_embeddings(BackboneCard("stain", "1", 4, 224, "none"), name, spots, iter([values]), key=name)
    entry = {"key": "1", "sections": ["A", "B"], "anchors": ["G3", "G1"]}
    writer.add_version("stain", {"features/mean": np.zeros(4), "genes/counts/mean": np.ones(12)}, entry)
    return writer.folder


@pytest.fixture
def own_bank(small_bank, tmp_path):
    """A copy of it to do with as one likes."""
    return shutil.copytree(small_bank, tmp_path / "b.zarr")
