"""Genes that some sections of a bank did not measure: which are chosen, and what a prediction says of them."""

import gzip
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from genrag_cli.cli.app import app
from genrag_cli.errors import UsageError
from genrag_cli.genes.moments import gene_statistics
from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction, read_prediction
from genrag_cli.pipeline.gene_choice import choose_genes, describe_genes
from genrag_cli.pipeline.retrieve import write_expression
from genrag_cli.reconstruction import MIN_SHARE
from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import write_cohort
from genrag_cli.types import LOG1P_CP10K, Expression, Listener, PixelSize, SparseCodes, TileGrid

GENES = np.array(["EVERYWHERE", "HALF", "ELSEWHERE", "NOWHERE", "STEADY"])
MEASURED = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]], bool)
COUNTS = np.random.default_rng(0).poisson([5, 3, 9, 2, 4], (2, 10, 5)) * MEASURED[:, None]
TOTALS = np.full((2, 10), 40.0)


@dataclass
class MadeUpBank:
    """Two sections of 10 spots as `stores.bank.Bank` shows them."""

    measured: np.ndarray = field(default_factory=MEASURED.copy)
    genes, gene_ids, anchors, folder, n_spots = GENES, None, GENES[:1], Path("b.zarr"), 20
    sections = ({"name": "A", "n_spots": 10}, {"name": "B", "n_spots": 10})

    @property
    def derived(self):
        found = gene_statistics(zip(map(sp.csr_matrix, COUNTS), TOTALS, self.measured, strict=True), LOG1P_CP10K)
        return {f"genes/log1p_cp10k/{name}": getattr(found, name) for name in ("mean", "sd", "detected")}

    def count_blocks(self, rows=1024):
        for i in range(2):
            yield 10 * i, sp.csr_matrix(COUNTS[i]), TOTALS[i]


def predict(path, weights, bank, centred=True):
    """Writes the prediction of (n, 20) weights, and reads it."""
    n, codes = len(weights), sp.csr_matrix(np.asarray(weights, np.float32))
    names = np.array([f"s{i}" for i in range(n)])
    rc = np.stack([np.arange(n), np.zeros(n, int)], 1)
    chosen = choose_genes(bank, "all", LOG1P_CP10K)
    prediction = Prediction(
        grid=TileGrid("s", names, rc * 100.0, rc, 224, 200.0, 200.0, PixelSize(0.5, "test")),
        codes=SparseCodes(
            codes.indptr.astype(np.int64), codes.indices, codes.data, 20, np.zeros(n), np.zeros(n, np.float32),
            np.full(n, "solved"),
        ),
        bank_spots=np.array([f"x/{i}" for i in range(20)]), bank_sections=np.array(["A", "B"]),
        y_init=Expression(np.zeros((n, 1), np.float32), names, GENES[:1], LOG1P_CP10K), genes=bank.genes[chosen],
        scale=LOG1P_CP10K, spot_um=100.0, about={}, var=describe_genes(bank, chosen, LOG1P_CP10K, bank.anchors),
    )  # fmt: skip
    listener = Listener()
    write_expression(path, prediction, bank, chosen, centred=centred, listener=listener)
    return read_prediction(path), listener.messages


def spread(a, b):
    """Weights of one spot: `a` over the section that lacks ELSEWHERE, `b` over the one that lacks HALF."""
    return np.repeat([a / 10, b / 10], 10)


def test_genes_that_no_section_measured_are_never_chosen():
    bank = MadeUpBank()
    assert GENES[choose_genes(bank, "all", LOG1P_CP10K)].tolist() == ["EVERYWHERE", "HALF", "ELSEWHERE", "STEADY"]
    assert 3 not in choose_genes(bank, "5", LOG1P_CP10K)
    assert GENES[choose_genes(bank, "HALF,STEADY", LOG1P_CP10K)].tolist() == ["HALF", "STEADY"]
    with pytest.raises(UsageError, match=r"no section of the bank b\.zarr measured NOWHERE"):
        choose_genes(bank, "HALF,NOWHERE", LOG1P_CP10K)
    assert describe_genes(bank, np.arange(5), LOG1P_CP10K, bank.anchors)[keys.VAR_RANK][3] == -1


def test_genes_are_ranked_by_variance_over_the_spots_that_measured_them():
    order = choose_genes(MadeUpBank(), "4", LOG1P_CP10K)
    sd = {}
    for gene in (0, 1, 2, 4):
        here = MEASURED[:, gene]
        sd[gene] = to_scale(COUNTS[here].reshape(-1, 5), TOTALS[here].ravel(), LOG1P_CP10K)[:, gene].std()
    assert order.tolist() == sorted(sd, key=lambda gene: -sd[gene])


def test_the_share_of_spots_that_measured_a_gene_is_told(tmp_path):
    found, _ = predict(tmp_path / "p.h5ad", [spread(0.5, 0.5)], MadeUpBank())
    assert found.var[keys.VAR_MEASURED].to_dict() == {"EVERYWHERE": 1, "HALF": 0.5, "ELSEWHERE": 0.5, "STEADY": 1}


@pytest.mark.parametrize("name", ["p.h5ad", "p.zarr"])
@pytest.mark.parametrize("centred", [True, False])
def test_a_missing_gene_is_missing_and_one_missing_in_part_follows_the_formula(tmp_path, name, centred):
    found, said = predict(tmp_path / name, [spread(1, 0), spread(0.2, 0.6), spread(0, 0)], MadeUpBank(), centred)
    values, present = found.expression.values, found.expression.present
    assert present.tolist() == [[True, True, False, True], [True] * 4, [True] * 4]
    mean = MadeUpBank().derived["genes/log1p_cp10k/mean"]
    assert values[0, 2] == np.float32(mean[2])
    mu = mean[1] if centred else 0.0
    y = to_scale(COUNTS[0], TOTALS[0], LOG1P_CP10K)[:, 1].astype(float)
    assert values[1, 1] == pytest.approx(mu + 4 * 0.2 * (y.mean() - mu), rel=1e-5)
    assert values[2, 1] == np.float32(mu)
    assert any("2 of 4 genes were not measured in every section" in m and "1 of 12 values" in m for m in said)


@pytest.mark.parametrize("centred", [True, False])
def test_a_bank_that_lacks_nothing_predicts_as_ever_and_says_nothing(tmp_path, centred):
    found, said = predict(tmp_path / "p.h5ad", [spread(0.3, 0.4)], MadeUpBank(np.ones((2, 5), bool)), centred)
    gapped, _ = predict(tmp_path / "g.h5ad", [spread(0.3, 0.4)], MadeUpBank(), centred)
    assert found.expression.present is None
    assert said == []
    for gene in ("EVERYWHERE", "STEADY"):
        one, other = (f.expression.values[:, f.expression.genes == gene] for f in (found, gapped))
        np.testing.assert_array_equal(one, other)


LACKING = ["TUM001", "HK001"]


def run(*args):
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(app, [str(a) for a in args], prog_name="generag", catch_exceptions=False)
    signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort whose section P2_1 lacks two genes, the bank of P1 and P2, and the prediction of P3."""
    folder = tmp_path_factory.mktemp("masks")
    train, bank = folder / "train", folder / "b.zarr"
    write_cohort(train, size_px=1200, n_genes=60)
    table = train / "counts" / "P2_1.tsv.gz"
    lines = [line.split("\t") for line in gzip.decompress(table.read_bytes()).decode().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name not in LACKING]
    assert len(kept) == len(lines[0]) - 2
    table.write_bytes(gzip.compress("\n".join("\t".join(line[i] for i in kept) for line in lines).encode(), mtime=0))
    run(
        "build-bank", train, "--patients", "prefix", "--exclude", "P3_1", "--backbone", "stain", "--workers", "1",
        "--missing-genes", "mask", "--bank", bank,
    )  # fmt: skip
    run(
        "retrieve", train / "images" / "P3_1.tif", "--spots", f"{train}:P3_1", "--backbone", "stain", "--bank", bank,
        "--out", folder, "--genes", "all", "--active", "4", "--workers", "1",
    )  # fmt: skip
    return folder, Bank.open(bank, "stain"), folder / "P3_1.stain.h5ad"


def test_a_bank_holds_what_its_sections_measured_and_means_over_those(made):
    _, bank, path = made
    assert [bank.genes[~row].tolist() for row in bank.measured] == [[], sorted(LACKING, key=bank.genes.tolist().index)]
    assert not set(LACKING) & set(bank.anchors)
    var = read_prediction(path).var
    _, counts, totals = next(bank.count_blocks(10**6))
    own = to_scale(counts, totals, LOG1P_CP10K).toarray().astype(float)[:, bank.genes == "TUM001"]
    assert var.loc["TUM001", keys.VAR_MEAN] == pytest.approx(own.mean())
    assert var.loc["TUM001", keys.VAR_SD] == pytest.approx(own.std())
    assert var.loc[LACKING, keys.VAR_MEASURED].to_numpy() == pytest.approx(len(own) / bank.n_spots)
    assert set(var.drop(LACKING)[keys.VAR_MEASURED]) == {1.0}


def test_a_prediction_takes_a_gene_from_the_references_that_measured_it(made):
    _, bank, path = made
    found = read_prediction(path)
    expected = np.concatenate([to_scale(c, t, LOG1P_CP10K).toarray() for _, c, t in bank.count_blocks()]).astype(float)
    weights, first = found.codes.dense().astype(float), bank.section_of == "P1_1"
    total = weights.sum(axis=1)
    share = np.where(total > 0, weights[:, first].sum(axis=1) / np.maximum(total, 1e-9), 1.0)
    assert 0 < (share < MIN_SHARE).sum() < len(share)
    for gene in LACKING:
        column, mu = found.expression.genes.tolist().index(gene), found.var.loc[gene, keys.VAR_MEAN]
        present, values = found.expression.present[:, column], found.expression.values[:, column]
        np.testing.assert_array_equal(present, share >= MIN_SHARE)
        y = mu + weights[:, first] @ (expected[first, column] - mu) / np.maximum(share, MIN_SHARE)
        np.testing.assert_allclose(values, np.where(present, y, mu), rtol=1e-5)
    others = ~np.isin(found.expression.genes, LACKING)
    assert found.expression.present[:, others].all()


def test_missing_values_are_not_scored_and_said(made):
    folder, _, path = made
    missing = int((~read_prediction(path).expression.present).sum())
    scores = json.loads(run("evaluate", path, "--truth", f"{folder / 'train'}:P3_1", "--json").stdout)["scores"]
    notes = {(s["method"], s["panel"]): s["note"] for s in scores if s["metric"] == "MSE"}
    for method in ("retrieval", "shuffled", "bank_mean"):
        assert f"{missing} of " in notes[method, "global"]
        assert "missing" not in notes[method, "core"]


def test_an_export_says_the_same_of_what_is_missing(made):
    folder, _, path = made
    run("export", path, "--genes", ",".join(["STR001", *LACKING]), "--out", folder / "e.h5ad")
    whole, part = (read_prediction(p).expression for p in (path, folder / "e.h5ad"))
    where = [whole.genes.tolist().index(gene) for gene in part.genes]
    np.testing.assert_array_equal(part.values, whole.values[:, where])
    np.testing.assert_array_equal(part.present, whole.present[:, where])


def test_an_export_of_genes_that_all_measured_has_no_layer(made):
    folder, _, path = made
    run("export", path, "--genes", "STR001,STR002", "--out", folder / "s.h5ad")
    assert read_prediction(folder / "s.h5ad").expression.present is None
