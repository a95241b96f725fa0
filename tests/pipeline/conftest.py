"""Made-up banks without slides, written as `build_bank` writes them, with embeddings that counts follow."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli.pipeline.anchors import AnchorOptions, summarise
from genrag_cli.pipeline.derive import add_version
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import BackboneCard, Listener

CARD = BackboneCard("made-up", "1", 12, 224, "none")
GENES = np.array([f"G{i}" for i in range(60)])
SIZES = {"A": 70, "B": 41, "C": 55, "D": 64}
FIVE = AnchorOptions(number=5)


def draw(name):
    """Counts (n, 60) that follow the embeddings (n, 12) of a section."""
    rng, shared = np.random.default_rng(ord(name)), np.random.default_rng(0)
    features = rng.normal(rng.normal(size=12), 1.5, size=(SIZES[name], 12)).astype(np.float32)
    rate = np.exp(0.2 * features @ shared.normal(size=(12, 60)) + shared.uniform(-1, 2, 60))
    return sp.csr_matrix(rng.poisson(rate).astype(np.int32)), features


def add(writer, name, measured=None):
    counts, features = draw(name)
    totals = np.asarray(counts.sum(axis=1), float).ravel() + 3
    if measured is not None:
        counts = sp.csr_matrix(counts.multiply(measured).astype(np.int32))
    spots = np.array([f"s{i}" for i in range(SIZES[name])])
    centres = np.random.default_rng(1).uniform(0, 1000, (SIZES[name], 2))
    writer.add_section(
        name, names=spots, counts=counts, totals=totals, centres=centres, array_rc=np.round(centres).astype(int),
        statistics=summarise(counts, totals, measured), measured=measured, entry={"key": name, "patient": name},
    )  # fmt: skip
    writer.add_embeddings(CARD, name, spots, iter([features]), key=name)


def make(folder, names, **measured):
    writer = BankWriter(folder)
    writer.create(genes=GENES, gene_ids=None, geometry={"fov_um": 200.0}, train=["T"])
    for name in names:
        add(writer, name, measured.get(name))
    return writer


def readers(writer):
    return [SectionReader.open(writer.folder, entry) for entry in writer.manifest["sections"]]


def versions(writer, options=FIVE):
    names = [s["name"] for s in writer.manifest["sections"]]
    add_version(writer, CARD.name, names, options, Listener())
    return Bank.open(writer.folder, CARD.name)


def assert_same(one, other):
    assert one.anchors.tolist() == other.anchors.tolist()
    assert one.derived.keys() == other.derived.keys()
    for name, array in one.derived.items():
        np.testing.assert_allclose(array, other.derived[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for scale, head in one.version["heads"].items():
        assert head["strength"] == other.version["heads"][scale]["strength"]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """`built(names)`: folder of a bank of these sections with a version. Not to be changed: copy it."""
    folder, done = tmp_path_factory.mktemp("built"), set()

    def build(names):
        if names not in done:
            versions(make(folder / names, names))
            done.add(names)
        return folder / names

    return build


@pytest.fixture(scope="session")
def made_up():
    """What this module has to offer."""
    return SimpleNamespace(**globals())
