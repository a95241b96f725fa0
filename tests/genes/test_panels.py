import json
from pathlib import Path

import numpy as np
import pytest

from genrag_cli.errors import GeneragError
from genrag_cli.genes.moments import GeneStatistics, gene_statistics, pool_statistics
from genrag_cli.genes.panels import core_panel, global_panel, read_panel_file, technical_genes
from genrag_cli.types import LOG1P_CP10K


def stats(sd, mean=None, detected=None, n_spots=10):
    sd = np.asarray(sd, dtype=float)
    mean, detected = (np.ones_like(sd) if given is None else np.asarray(given) for given in (mean, detected))
    return GeneStatistics(n_spots, mean, sd, detected, np.full(len(sd), n_spots))


def names(n):
    return np.array([f"G{i}" for i in range(n)])


TECHNICAL = """
    MT-CO1 mt-Nd1 MT.ATP6 RPS2 RPS3A RPS4X RPS4Y1 RPS27L RPSA RPL36AL RPL7L1 RPL22L1 RPLP0 RPL41 Rpl13a Rps6
    RPL13AP5 RPLP0P6 RPS2P5 BLANK_0001 NegControlProbe_1
"""
OTHERS = "MTOR MTDH MTHFD2 MT2A MT1X RPS6KA1 RPS6KB2 RPS19BP1 RPS10-NUDT3 MRPL13 RPL RPN1 RPRD1A Mt1 ACTB RPSAX"


@pytest.mark.parametrize("gene", TECHNICAL.split())
def test_technical_genes_are_told_by_name(gene):
    assert technical_genes([gene]).tolist() == [True]


@pytest.mark.parametrize("gene", OTHERS.split())
def test_genes_that_only_start_alike_are_kept(gene):
    assert technical_genes([gene]).tolist() == [False]


def test_the_core_panel_is_ordered_by_pooled_variance():
    sections = [stats([1, 3, 2, 0.5]), stats([1, 1, 3, 0.5])]
    assert core_panel(names(4), sections, 3).tolist() == [2, 1, 0]


def test_technical_rare_and_constant_genes_are_no_anchors():
    genes = ["MT-CO1", "RARE", "CONST", "A", "RPL3", "B"]
    section = stats([9, 8, 0, 1, 7, 2], detected=np.array([1, 0.019, 1, 0.02, 1, 1]))
    assert core_panel(genes, [section], 2).tolist() == [5, 3]
    with pytest.raises(GeneragError, match="3 anchor genes asked for; 2 of 6 genes pass"):
        core_panel(genes, [section], 3)


def test_only_the_best_2000_genes_of_some_section_are_anchors():
    sd = np.linspace(2, 1, 2101)
    other = sd.copy()
    other[2050] = 3
    sections = [stats(sd), stats(other)]
    assert set(core_panel(names(2101), sections, 2001).tolist()) == {*range(2000), 2050}
    with pytest.raises(GeneragError, match="2001 of 2101 genes pass"):
        core_panel(names(2101), sections, 2002)


def test_a_gene_outside_the_3000_highest_means_is_no_anchor():
    mean = np.ones(3100)
    mean[0] = 0
    sd = np.linspace(2, 1, 3100)
    assert core_panel(names(3100), [stats(sd, mean=mean)], 3).tolist() == [1, 2, 3]


def test_the_core_panel_is_seen_from_the_sections_given_only():
    first, second = stats([5, 1, 2]), stats([1, 5, 2])
    assert core_panel(names(3), [first], 1).tolist() == [0]
    assert core_panel(names(3), [second], 1).tolist() == [1]


def test_names_and_statistics_of_different_length_are_refused():
    with pytest.raises(GeneragError, match="2 gene names for statistics over 3 genes"):
        core_panel(names(2), [stats([1, 2, 3])], 1)


def test_the_global_panel_takes_detected_genes_by_variance():
    table = stats([1, 5, 3, 0, 4], detected=np.array([0.02, 0.01, 1, 1, 1]))
    assert global_panel(table, 2).tolist() == [4, 2]
    assert global_panel(table).tolist() == [4, 2, 0]
    assert global_panel(table, min_detected=0.0).tolist() == [1, 4, 2, 0]


def test_panels_are_read_from_text_json_and_npy_in_their_order(tmp_path):
    genes = ["ERBB2", "ACTB", "KRT19"]
    (tmp_path / "a.txt").write_text("# mine\nERBB2\n\nACTB \r\nKRT19")
    (tmp_path / "a.json").write_text(json.dumps({"genes": genes}))
    np.save(tmp_path / "a.npy", np.array(genes))
    for path in sorted(tmp_path.iterdir()):
        assert read_panel_file(path).tolist() == genes


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", "A\nB\nA\n", "more than once, such as A"),
        ("a.txt", "\n# none\n", "no genes"),
        ("a.json", '["A"]', "cannot be read"),
        ("a.json", '{"genes": ["A", 1]}', "cannot be read"),
        ("a.json", '{"genes": ["A", " "]}', "an empty name"),
        ("a.json", "{", "cannot be read"),
    ],
)
def test_a_malformed_panel_is_refused_by_name(tmp_path, name, content, why):
    (tmp_path / name).write_text(content)
    with pytest.raises(GeneragError, match=rf"{name}: .*{why}"):
        read_panel_file(tmp_path / name)


def test_a_pickled_panel_and_a_missing_one_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["A", None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.arange(3))
    for name in ("a.npy", "b.npy", "absent.txt"):
        with pytest.raises(GeneragError, match=f"{name}: cannot be read"):
            read_panel_file(Path(tmp_path / name))


@pytest.mark.real
def test_published_panels_are_read(shared_data):
    assert len(read_panel_file(shared_data / "genes" / "CCRCC_var_50genes.json")) == 50
    assert len(read_panel_file(shared_data / "genes" / "her_hvg_cut_1000.npy")) == 785


@pytest.mark.real
def test_her2st_anchors_are_variable_tumour_genes_within_the_global_panel(shared_data):
    from genrag_cli.cohorts import open_cohort
    from genrag_cli.genes import columns, shared

    loaded = [open_cohort(shared_data / "her2st").section(name).load() for name in ("B4", "C2")]
    genes = shared([m.gene_names for m in loaded], ["B4", "C2"]).genes.names
    sections = [gene_statistics([(m.counts[:, columns(m.genes, genes)], m.total_counts)], LOG1P_CP10K) for m in loaded]
    core, everything = core_panel(genes, sections), global_panel(pool_statistics(sections))
    assert len(core) == 300
    assert {"ERBB2", "COL1A1", "IGKC"} <= set(genes[core].tolist())
    assert set(core.tolist()) <= set(everything.tolist())
