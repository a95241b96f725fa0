import dataclasses

import numpy as np
import pytest
from scipy import sparse

from genrag_cli.cohorts import Measured, Section
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.errors import CohortError, GeneragError, SlideError, UsageError
from genrag_cli.pipeline.sections import (
    GeneRules,
    PixelRules,
    SectionIdentity,
    keep_imaged,
    load_section,
    name_like,
    naming,
    open_image,
    settle_pixel_size,
    take_spots,
    tidy_measured,
)
from genrag_cli.types import GeneNames


def measure(genes, ids=None, n=3):
    counts = sparse.csr_matrix(np.arange(1, n * len(genes) + 1, dtype=np.int32).reshape(n, -1))
    return Measured(
        np.array([f"s{i}" for i in range(n)]), np.arange(2.0 * n).reshape(n, 2) * 10, np.zeros((n, 2), np.int64),
        counts, np.array(genes), None if ids is None else np.array(ids), np.asarray(counts.sum(1), float).ravel(),
    )  # fmt: skip


def test_versions_go_and_columns_of_one_gene_are_summed_with_their_totals_kept():
    tidied = tidy_measured(measure(["ENSG00000000003.15", "ENSG00000000003.14", "B"]), GeneRules(), "S")
    assert tidied.genes.tolist() == ["ENSG00000000003", "B"]
    assert tidied.counts.toarray()[0].tolist() == [3, 3]
    assert tidied.total_counts[0] == 6
    assert tidied.n_repeated == 1


def test_repeated_genes_can_be_refused():
    with pytest.raises(CohortError, match="section S: 1 columns repeat a gene"):
        tidy_measured(measure(["ENSG00000000003.15", "ENSG00000000003.14"]), GeneRules(repeats="refuse"), "S")
    with pytest.raises(UsageError, match="Known: sum, refuse"):
        GeneRules(repeats="first")


def test_a_table_renames(tmp_path):
    (tmp_path / "t.csv").write_text("previous,symbol\nOLD,NEW\n")
    assert tidy_measured(measure(["OLD", "B"]), GeneRules(tmp_path / "t.csv"), "S").genes.tolist() == ["NEW", "B"]


def test_truth_by_id_is_named_as_the_prediction_is():
    truth = measure(["ENSG00000000003", "ENSG00000000005"], ["ENSG00000000003", "ENSG00000000005"])
    named = name_like(truth, GeneNames(np.array(["TSPAN6"]), np.array(["ENSG00000000003"])))
    assert named.genes.tolist() == ["TSPAN6", "ENSG00000000005"]


def test_a_gene_of_the_same_symbol_and_another_id_is_not_taken_for_it():
    truth = measure(["TSPAN6", "B"], ["ENSG00000000999", "ENSG00000000005"])
    named = name_like(truth, GeneNames(np.array(["TSPAN6"]), np.array(["ENSG00000000003"])))
    assert named.genes.tolist() == ["TSPAN6 (ENSG00000000999)", "B"]


def test_spots_that_are_taken_keep_the_lattice():
    measured = measure(["A"], n=5)
    few = take_spots(measured, np.array([4, 0]))
    assert few.names.tolist() == ["s4", "s0"]
    assert few.counts.toarray().ravel().tolist() == [5, 1]
    assert few.pitch_px == measured.pitch_px


def test_a_section_without_an_image_says_so(tmp_path):
    with pytest.raises(CohortError, match="section S has no image"):
        open_image(Section("S", None, None, tmp_path / "c", CountsFile(tmp_path / "c")))


def test_errors_name_the_section():
    with pytest.raises(CohortError, match="section S: odd"), naming("S"):
        raise GeneragError("odd")
    with pytest.raises(GeneragError, match=r"^S is odd"), naming("S"):
        raise GeneragError("S is odd")


@pytest.fixture
def counted(tmp_path):
    (tmp_path / "c").write_bytes(b"1")
    return Section("S", None, None, tmp_path / "c", CountsFile(tmp_path / "c"))


def identify(section, *asked):
    identity = SectionIdentity.of(section, asked)
    return identity.key(section), identity


def test_a_section_changes_with_its_files_and_how_they_are_read(counted):
    key, _ = identify(counted, "g")
    assert identify(dataclasses.replace(counted, patient="P"), "g")[0] == key
    others = [
        {"mpp_given": 0.5}, {"metadata": {"organ": "skin"}},
        {"reader": CountsFile(counted.counts, trusts_indices=False)},
    ]  # fmt: skip
    assert all(identify(dataclasses.replace(counted, **changed), "g")[0] != key for changed in others)
    assert identify(counted, "h")[0] != key
    counted.counts.write_bytes(b"2")
    assert identify(counted, "g")[0] != key


def test_files_that_nobody_touched_are_not_read_again(counted):
    _, first = identify(counted, "g")
    entry = {"how": first.how, "files": first.files}
    assert SectionIdentity.of(counted, ["g"]).matches(entry)
    assert not SectionIdentity.of(counted, ["h"]).matches(entry)
    counted.counts.write_bytes(b"12")
    assert not SectionIdentity.of(counted, ["g"]).matches(entry)


def test_a_copy_of_the_files_is_the_same_section(counted, tmp_path):
    (tmp_path / "d").write_bytes(b"1")
    copy = dataclasses.replace(counted, counts=tmp_path / "d", reader=CountsFile(tmp_path / "d"))
    assert identify(copy, "g")[0] == identify(counted, "g")[0]


def test_slides_keep_every_spot():
    class Plain:
        notes = ("odd colours",)

    measured = measure(["A"])
    kept = keep_imaged(Section("S", None, None, None, None), Plain(), measured)
    assert kept.names.tolist() == measured.names.tolist()
    assert kept.notes == ("odd colours",)


@pytest.mark.real
def test_a_real_section_is_tidy_already(shared_data):
    from genrag_cli.cohorts import open_section

    section = open_section(f"{shared_data / 'her2st'}:C2")
    plain, tidied = section.load(), load_section(section, GeneRules())
    assert tidied.genes.tolist() == plain.genes.tolist()
    assert (tidied.counts != plain.counts).nnz == 0


class Image:
    path = "slide.tif"

    def pixel_size_candidates(self):
        return [("vendor", 0.25)]


@pytest.mark.parametrize(("technology", "mpp", "source"), [("visium", 0.7, "spot pitch"), ("xenium", 0.21, "metadata")])
def test_the_pitch_decides_for_arrays_and_not_for_squares_laid_over_cells(technology, mpp, source):
    section = Section(
        "S", None, None, None, None, technology, spot_pitch_um=100.0, pixel_size_candidates=(("metadata", 0.21),)
    )
    size, _ = settle_pixel_size(section, Image(), 100 / 0.7, PixelRules())
    assert (size.mpp, size.source) == (pytest.approx(mpp), source)
    assert len(size.others) == 2
    with pytest.raises(SlideError, match="differ by more than 5 %"):
        settle_pixel_size(section, Image(), 100 / 0.7, PixelRules(strict=True))
    given, _ = settle_pixel_size(section, Image(), 100 / 0.7, PixelRules(mpp=0.5))
    assert given.source == "--mpp or manifest"
