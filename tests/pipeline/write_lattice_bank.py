"""Made-up banks on lattices: embeddings and counts that follow the same smooth fields, without slides."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp

from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.anchors import AnchorOptions, summarise
from genrag_cli.pipeline.derive import add_version
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import LOG1P_CP10K, BackboneCard, Listener

CARD = BackboneCard("made-up", "1", 12, 224, "none")
PITCH_UM, MPP = 100.0, 0.5
N_GENES = 40
GENES = np.array([f"G{i}" for i in range(N_GENES)])


@dataclass(frozen=True, eq=False)
class Drawn:
    """A section: n spots on a square lattice."""

    name: str
    patient: str | None
    features: np.ndarray
    counts: np.ndarray
    centres: np.ndarray
    measured: np.ndarray | None = None

    def but(self, **changes):
        """The same with some things changed."""
        return replace(self, **changes)

    def rows(self, rows):
        """Some spots, in that order."""
        return self.but(features=self.features[rows], counts=self.counts[rows], centres=self.centres[rows])


def draw(name, patient, *, side=6, seed=None, spread=0.1):
    """A section whose three fields drive 12 dimensions and 40 genes; `spread` is the sd of a patient's effects."""
    shared = np.random.default_rng(0)
    mixing, loadings, base = (
        shared.normal(size=(3, 12)),
        shared.normal(size=(3, N_GENES)),
        shared.uniform(0, 2, N_GENES),
    )
    rng = np.random.default_rng([sum(map(ord, name)) if seed is None else seed, 7])
    own = np.random.default_rng([sum(map(ord, patient or name)), 11])
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)
    waves, phases = rng.normal(0, 0.9, (2, 3)), rng.uniform(0, 2 * np.pi, 3)
    fields = np.sin(places @ waves + phases) + 0.3 * rng.normal(size=(len(places), 3))
    features = fields @ mixing + 0.1 * rng.normal(size=(len(places), 12)) + own.normal(0, 1, 12)
    rate = np.exp(base + 0.5 * fields @ loadings + own.normal(0, spread, N_GENES))
    centres = (places + 1) * PITCH_UM / MPP
    return Drawn(name, patient, features.astype(np.float32), rng.poisson(rate).astype(np.int32), centres)


def add(writer, section):
    """Adds a section with its embeddings."""
    counts, n = sp.csr_matrix(section.counts), len(section.counts)
    totals = np.asarray(counts.sum(axis=1), float).ravel() + 3
    if section.measured is not None:
        counts = sp.csr_matrix(counts.multiply(section.measured).astype(np.int32))
    spots = np.array([f"s{i}" for i in range(n)])
    rc = np.round(section.centres[:, ::-1] * MPP / PITCH_UM).astype(int)
    entry = {"key": section.name, "patient": section.patient, "pixel_size": {"mpp": MPP, "source": "made up"}}
    writer.add_section(
        section.name, names=spots, counts=counts, totals=totals, centres=section.centres, array_rc=rc,
        statistics=summarise(counts, totals, section.measured), measured=section.measured, entry=entry,
    )  # fmt: skip
    writer.add_embeddings(CARD, section.name, spots, iter([section.features]), key=section.name)


def write_bank(folder, sections, anchors=None):
    """A bank of these sections with a version."""
    writer = BankWriter(folder)
    geometry = {"fov_um": 100.0, "pitch_um": PITCH_UM, "spot_um": 55.0, "crop": "fov"}
    writer.create(genes=GENES, gene_ids=None, geometry=geometry, train=["T"])
    for section in sections:
        add(writer, section)
    add_version(writer, CARD.name, [s.name for s in sections], anchors or AnchorOptions(number=12), Listener())
    return Bank.open(folder, CARD.name)


@dataclass(frozen=True, eq=False)
class Held:
    """A drawn section in memory, read as `stores.bank.SectionReader` reads one."""

    drawn: Drawn

    def __len__(self):
        return len(self.drawn.counts)

    name = property(lambda self: self.drawn.name)
    patient = property(lambda self: self.drawn.patient)
    centres = property(lambda self: self.drawn.centres)
    totals = property(lambda self: self.drawn.counts.sum(axis=1) + 3.0)
    entry = property(lambda self: {"name": self.name, "pixel_size": {"mpp": MPP}, "n_missing": 0})

    def counts(self):
        return sp.csr_matrix(self.drawn.counts)

    def gene_columns(self, *names):
        found = summarise(self.counts(), self.totals, None)
        return {name: found[name] for name in names}


def hold(sections, scale=LOG1P_CP10K):
    """`BankData` of sections in memory: no files, so no context."""
    held = tuple(Held(s) for s in sections)
    bank = SimpleNamespace(
        folder=None, backbone=CARD.name, manifest={"backbones": {CARD.name: {}}}, genes=GENES,
        embeddings=[s.features for s in sections], sections=[h.entry for h in held],
        geometry={"pitch_um": PITCH_UM}, version={"recipe": AnchorOptions(number=12).recipe},
    )  # fmt: skip
    expression = sp.vstack([to_scale(h.counts(), h.totals, scale) for h in held], format="csr")
    sizes = [len(h) for h in held]
    rows = tuple(np.arange(n) for n in sizes)
    common = np.ones(N_GENES, bool)
    return BankData(bank, held, rows, np.repeat(np.arange(len(held)), sizes), expression, scale, common)
