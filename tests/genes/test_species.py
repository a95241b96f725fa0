import numpy as np
import pytest

from genrag_cli.errors import GeneragError
from genrag_cli.genes.species import Evidence, settle_species, species_of
from genrag_cli.types import GeneNames

HUMAN = [f"{a}{b}X" for a in "ABCDEFGHIJ" for b in "CFM"]
MOUSE = [name.capitalize() for name in HUMAN]
MITO = ["CO1", "ND1", "ATP6", "CYB"]


def judge(names, ids=None):
    return species_of(GeneNames(np.array(names), None if ids is None else np.array(ids)))


def ensembl(prefix, n=20):
    return [f"{prefix}{i:011d}.{i}" for i in range(n)]


@pytest.mark.parametrize(
    ("prefix", "species"),
    [("ENSG", "human"), ("ENSMUSG", "mouse"), ("ENSRNOG", "rat"), ("ENSSSCG", "pig"), ("ENSXYZG", "ensxyz")],
)
def test_ensembl_ids_tell_the_species_as_names_and_beside_symbols(prefix, species):
    assert judge(ensembl(prefix)).species == species
    beside = judge(HUMAN, [*ensembl(prefix, 20), *[""] * 10])
    assert (beside.species, beside.by) == (species, "ids")
    assert f"20 of 20 Ensembl ids are {species}" in beside.why


def test_a_few_foreign_ids_do_not_count_and_many_are_a_mixture():
    assert judge([*ensembl("ENSG", 99), *ensembl("ENSMUSG", 1)]).species == "human"
    assert judge(ensembl("ENSG"), ensembl("ENSG")).why.startswith("20 of 20")
    both = judge([*ensembl("ENSG", 90), *ensembl("ENSMUSG", 10)])
    assert both.species == "mixed"
    assert "90 human and 10 mouse among 100 Ensembl ids" in both.why


def test_symbols_tell_human_from_mouse_by_letter_case():
    assert judge(HUMAN) == Evidence("human", judge(HUMAN).why, "symbols")
    assert judge(MOUSE).species == "mouse"
    assert "30 of 30 plain symbols" in judge(HUMAN).why
    assert judge([*HUMAN, "C1orf159"]).species == "human"


def test_mitochondrial_genes_tell_the_species_where_other_symbols_are_few():
    assert judge([f"MT-{g}" for g in MITO]).species == "human"
    assert judge([f"mt-{g.capitalize()}" for g in MITO]).species == "mouse"
    assert judge([*MOUSE, *(f"Mt-{g.lower()}" for g in MITO)]).species == "rat"
    assert judge(["MTOR", "MT2A", "MTHFD2", "MT1X"]).species is None


def test_small_panels_and_disagreeing_signs_leave_the_species_unknown():
    small = judge(HUMAN[:19])
    assert small.species is None
    assert "fewer than 20 do not tell" in small.why
    torn = judge([*HUMAN, *(f"mt-{g}" for g in MITO)])
    assert torn.species is None
    assert "disagree" in torn.why
    assert judge([name.lower() for name in HUMAN]).species is None
    assert judge([f"LOC{i}" for i in range(100)]).species is None


def test_mixtures_are_seen_in_prefixes_and_in_letter_case():
    joint = [f"GRCh38_{g}" for g in HUMAN] + [f"mm10___{g}" for g in MOUSE]
    assert judge(joint).species == "mixed"
    assert judge(joint[:30]).species == "human"
    assert judge([f"GRCm39_{g}" for g in HUMAN]).species == "mouse"
    assert judge([*HUMAN, *MOUSE]).species == "mixed"
    assert judge([*HUMAN, "Gfp"]).species == "human"


@pytest.mark.parametrize(
    ("stated", "found", "by", "settled"),
    [
        ("human", None, "nothing", "human"),
        (None, "mouse", "symbols", "mouse"),
        (" ", None, "nothing", None),
        ("Homo sapiens", "human", "ids", "human"),
        ("Mus musculus", "mouse", "symbols", "mouse"),
        ("rat", "mouse", "symbols", "rat"),
        ("macaque", "human", "symbols", "macaque"),
        ("mixed", "mixed", "ids", "mixed"),
    ],
)
def test_metadata_decide_where_the_genes_do_not_contradict_them(stated, found, by, settled):
    assert settle_species(stated, Evidence(found, "seen", by)) == settled


@pytest.mark.parametrize(
    ("stated", "found", "by"),
    [
        ("human", "mouse", "ids"),
        ("mouse", "human", "symbols"),
        ("rat", "human", "symbols"),
        ("human", "rat", "symbols"),
        ("rat", "mouse", "ids"),
        ("macaque", "human", "ids"),
        ("human", "mixed", "symbols"),
    ],
)
def test_metadata_that_the_genes_contradict_are_refused_with_what_was_seen(stated, found, by):
    with pytest.raises(GeneragError, match=f"metadata say {stated}, the genes say {found}: 7 of 8 seen") as error:
        settle_species(stated, Evidence(found, "7 of 8 seen", by))
    assert "--exclude" in error.value.hint


@pytest.mark.real
def test_her2st_is_human_and_its_names_in_mouse_spelling_are_mouse(shared_data):
    from genrag_cli.cohorts import open_cohort

    genes = open_cohort(shared_data / "her2st").section("B4").read_genes()
    assert species_of(genes).species == "human"
    mouse = GeneNames(np.array([g.capitalize() if g[:3] != "MT-" else g.lower() for g in genes.names.tolist()]))
    assert species_of(mouse).species == "mouse"


@pytest.mark.real
def test_published_human_panels_are_human_and_a_short_list_is_unknown(shared_data):
    from genrag_cli.genes import read_panel_file

    for name in ("CCRCC_var_50genes.json", "her_hvg_cut_1000.npy"):
        assert judge(read_panel_file(shared_data / "genes" / name)).species == "human"
    rows = (shared_data / "genes" / "MostStable_Mouse.csv").read_text().splitlines()
    assert judge([row.split(";")[1] for row in rows[1:]]).species is None
