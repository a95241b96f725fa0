import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from genrag_cli.errors import GeneragError
from genrag_cli.genes.panels import N_CORE
from genrag_cli.genes.published_panels import (
    PANELS,
    generag_panel,
    hest_bench_panel,
    stem_panel,
    variable_genes,
)

HER2ST = ("B4", "C2")


def made_up(seed, n_spots=60, n_genes=400):
    """Counts with very different means, spots without counts and genes without counts."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(-1, 1.5, n_genes) * (rng.random(n_genes) > 0.05)
    counts = rng.negative_binomial(0.8, 0.8 / (0.8 + mean), (n_spots, n_genes))
    return sparse.csr_matrix(counts * (rng.random(n_spots) > 0.05)[:, None].astype(np.int32))


def named(n):
    return np.array([f"G{i:04d}" for i in range(n)])


def giving(*sections):
    return lambda: iter(sections)


def scanpy_variable(counts, genes, n):
    """The published steps by the library that they are published with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata
        import scanpy as sc

        table = anndata.AnnData(counts.astype(np.float32))
        table.var_names = genes
        sc.pp.filter_cells(table, min_genes=1)
        sc.pp.filter_genes(table, min_cells=1)
        sc.pp.normalize_total(table)
        sc.pp.log1p(table)
        sc.pp.highly_variable_genes(table, flavor="seurat", n_top_genes=n)
    return set(table.var_names[table.var["highly_variable"]])


def published_candidates(sections, genes, n):
    """Union over slides without the literal prefixes, and all raw counts of it as pandas has them."""
    import pandas as pd

    union = set.union(*(scanpy_variable(s, genes, n) for s in sections))
    kept = sorted(g for g in union if not g.startswith(("MT", "mt", "RPS", "RPL")))
    column = {g: i for i, g in enumerate(genes.tolist())}
    dense = np.vstack([s.toarray()[:, [column[g] for g in kept]] for s in sections]).astype(np.float32)
    return pd.DataFrame(dense, columns=kept)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [30, 120, 2000])
def test_variable_genes_are_those_that_scanpy_finds(seed, n):
    counts = made_up(seed)
    genes = named(counts.shape[1])
    assert set(genes[variable_genes(counts, n)]) == scanpy_variable(counts, genes, n)


def test_counts_with_decimals_are_normalised_alike():
    counts = made_up(5) * 0.37
    genes = named(counts.shape[1])
    assert set(genes[variable_genes(counts, 50)]) == scanpy_variable(counts, genes, 50)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_variable_genes_do_not_depend_on_empty_rows_stored_zeros_or_column_order(seed, n):
    counts = made_up(seed, 25, 60)
    order = np.random.default_rng(seed).permutation(60)
    noisy = sparse.vstack([counts, sparse.csr_matrix((3, 60), dtype=counts.dtype)]).tocsr()
    noisy.data[0] = 0
    plain = noisy[:25].copy()
    plain.eliminate_zeros()
    found = variable_genes(plain, n)
    assert variable_genes(noisy, n).tolist() == found.tolist()
    assert variable_genes(noisy[:, order], n).tolist() == found[order].tolist()


def test_genes_that_tie_with_the_last_are_all_taken():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(np.tile(rng.poisson(3, (40, 6)) * [[1, 2, 3, 4, 5, 6]], 2))
    first = variable_genes(counts, 1)
    assert first.sum() == 2
    assert first[:6].tolist() == first[6:].tolist()


def test_a_section_without_counts_has_no_variable_genes_and_genes_that_do_not_vary_are_none():
    assert not variable_genes(sparse.csr_matrix((4, 3)), 2).any()
    assert not variable_genes(sparse.csr_matrix(np.full((4, 3), 2)), 2).any()


def test_stem_takes_the_genes_high_in_both_lists_sorted_by_name():
    sections = [made_up(seed, n_genes=700) for seed in range(2)]
    genes = named(700)[np.random.default_rng(1).permutation(700)]
    genes[:3] = ["MTOR", "RPS6KA1", "RPLP0"]
    table = published_candidates(sections, genes, 2000)
    high = [set(s.sort_values(ascending=False).index[:241]) for s in (table.mean(), table.std())]
    assert genes[stem_panel(genes, giving(*sections))].tolist() == sorted(high[0] & high[1])


def test_stem_finds_the_depth_for_a_number_or_says_that_there_is_none():
    sections, genes = giving(made_up(0)), named(400)
    missing = []
    for n in range(1, 40):
        try:
            assert len(stem_panel(genes, sections, n)) == n
        except GeneragError:
            missing.append(n)
    assert 0 < len(missing) < 30
    with pytest.raises(GeneragError, match=f"no list of {missing[-1]} genes") as error:
        stem_panel(genes, sections, missing[-1])
    assert len(stem_panel(genes, sections, missing[-1] + 1)) == missing[-1] + 1
    assert f"{missing[-1] - 1} or {missing[-1] + 1} genes" in error.value.hint


def test_generag_takes_the_largest_raw_variances_in_their_order():
    sections = [made_up(seed, n_genes=700) for seed in range(2)]
    genes = named(700)
    table = published_candidates(sections, genes, 2000)
    assert genes[generag_panel(genes, giving(*sections), 50)].tolist() == (
        table.var().sort_values(ascending=False, kind="stable").index[:50].tolist()
    )


def test_the_published_filter_goes_by_prefix():
    counts = made_up(3, n_genes=200)
    genes = named(200)
    free = genes[generag_panel(genes, giving(counts))]
    hidden = genes.copy()
    hidden[genes == free[0]] = "MTOR"
    assert hidden[generag_panel(hidden, giving(counts))].tolist() == free[1:].tolist()


def test_the_number_is_the_published_one_or_all_that_pass_unless_it_is_asked_for():
    counts = made_up(3)
    passing = len(generag_panel(named(400), giving(counts), 300))
    assert passing == PANELS["generag"].number == N_CORE
    few = generag_panel(named(100), giving(counts[:, :100]))
    assert 0 < len(few) < 100
    for recipe in (generag_panel, stem_panel, hest_bench_panel):
        with pytest.raises(GeneragError, match=r"101 genes of panel .* asked for; \d+ pass") as error:
            recipe(named(100), giving(counts[:, :100]), 101)
        assert "at most" in error.value.hint


def hest_by_scanpy(sections, genes, n):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata
        import scanpy as sc

        common = genes
        for counts in sections:
            frequent = (counts.toarray() > 0).sum(axis=0) >= np.ceil(0.10 * counts.shape[0])
            common = np.intersect1d(common, genes[frequent])
        common = [g for g in common.tolist() if "BLANK" not in g and "Control" not in g]
        column = {g: i for i, g in enumerate(genes.tolist())}
        stacked = np.vstack([s.toarray()[:, [column[g] for g in common]] for s in sections]).astype(np.float32)
        table = anndata.AnnData(stacked)
        table.var_names = common
        sc.pp.log1p(table)
        sc.pp.highly_variable_genes(table, n_top_genes=n)
    return table.var_names[table.var["highly_variable"]][:n].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_hest_bench_is_what_hest_makes_with_scanpy(seed):
    sections = [made_up(seed, 70), made_up(seed + 10, 30)]
    genes = named(400)[np.random.default_rng(seed).permutation(400)]
    genes[:2] = ["BLANK_0001", "NegControlProbe_1"]
    assert genes[hest_bench_panel(genes, giving(*sections))].tolist() == hest_by_scanpy(sections, genes, 50)


def test_hest_bench_wants_a_gene_in_a_tenth_of_every_section():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (40, 30))
    second = counts.copy()
    second[3:, 7] = 0
    second[4:, 8] = 0
    second[:, 8] += second[:, 8] == 0
    second[4:, 8] = 0
    genes = named(30)
    found = genes[hest_bench_panel(genes, giving(*map(sparse.csr_matrix, (counts, second))), 29)]
    assert sorted(set(genes.tolist()) - set(found.tolist())) == ["G0007"]


@pytest.mark.parametrize("recipe", [stem_panel, generag_panel, hest_bench_panel])
def test_what_is_no_table_of_raw_counts_over_these_genes_is_refused(recipe):
    with pytest.raises(GeneragError, match="3 gene names for counts of 400 genes"):
        recipe(named(3), giving(made_up(0)))
    with pytest.raises(GeneragError, match="negative or undefined"):
        recipe(named(400), giving(made_up(0) * -1.0))
    with pytest.raises(GeneragError, match="no spots"):
        recipe(named(400), giving())


@pytest.mark.parametrize("recipe", [stem_panel, generag_panel, hest_bench_panel])
def test_the_counts_given_are_not_changed(recipe):
    counts = made_up(0)
    before = counts.copy()
    recipe(named(400), giving(counts))
    assert (counts != before).nnz == 0
    assert counts.dtype == before.dtype


@pytest.fixture(scope="module")
def her2st(shared_data):
    from genrag_cli.cohorts import open_cohort
    from genrag_cli.genes import columns, shared

    loaded = [open_cohort(shared_data / "her2st").section(name).load() for name in HER2ST]
    genes = shared([m.gene_names for m in loaded], HER2ST).genes.names
    return genes, [m.counts[:, columns(m.genes, genes)] for m in loaded]


@pytest.mark.real
def test_variable_genes_of_her2st_are_those_that_scanpy_finds(her2st):
    genes, sections = her2st
    for counts in sections:
        found = set(genes[variable_genes(counts)])
        assert found == scanpy_variable(counts, genes, 2000)
        assert len(found) == 2000


@pytest.mark.real
def test_panels_of_her2st_are_the_published_ones(her2st):
    genes, sections = her2st
    table = published_candidates(sections, genes, 2000)
    by_mean, by_sd = (s.sort_values(ascending=False).index for s in (table.mean(), table.std()))
    stem = genes[stem_panel(genes, giving(*sections))].tolist()
    assert stem == sorted(set(by_mean[:241]) & set(by_sd[:241]))
    generag = genes[generag_panel(genes, giving(*sections))].tolist()
    both = set(by_mean[:3000]) & set(by_sd[:3000])
    assert generag == [g for g in by_sd if g in both][:300]
    assert set(stem) != set(generag)
    assert genes[hest_bench_panel(genes, giving(*sections))].tolist() == hest_by_scanpy(sections, genes, 50)
