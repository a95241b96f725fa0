"""Xenium outputs as releases 1 to 4 write them, and the H&E image beside them."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.formats import choose_format
from genrag_cli.cohorts.manifest import write_manifest
from genrag_cli.cohorts.xenium import looks_like, read_alignment, read_cohort, read_one
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

FEATURES = (
    ("ENSG01", "ACTB", "Gene Expression"), ("ENSG02", "KRT5", "Gene Expression"), ("ENSG03", "CD4", "Gene Expression"),
    ("NC1", "NegControlProbe_00042", "Negative Control Probe"),
    ("NC2", "NegControlCodeword_0500", "Negative Control Codeword"),
    ("U1", "UnassignedCodeword_0001", "Unassigned Codeword"), ("B1", "BLANK_0006", "Gene Expression"),
)  # fmt: skip
TURN = ((0.0110710, 1.2895790, 807.978895), (-1.2895790, 0.0110710, 73097.655175), (0.0, 0.0, 1.0))
"""H&E px to morphology px, as 10x shows it for a human breast section: a quarter turn and a scale."""
MIRROR = ((-1.29, 0.0, 9000.0), (0.0, 1.29, 40.0), (0.0, 0.0, 1.0))


def write_xenium(
    outs, *, n=60, matrix="h5", cells="parquet", ids="text", order=None, drop=(), image=True, alignment=TURN,
    prefix="S", organism="Human", species=None, genes=FEATURES,
):  # fmt: skip
    """An output folder; returns x, y in um and the counts of its cells, in the order of the matrix."""
    import pandas as pd

    rng = np.random.default_rng(n)
    outs.mkdir(parents=True, exist_ok=True)
    names = [f"aaaa{i:04}-1" for i in range(n)] if ids == "text" else [str(i + 1) for i in range(n)]
    xy, counts = rng.random((n, 2)) * (700, 400) + 30, rng.poisson(1.5, (n, len(genes))).astype(np.int32)
    _write_matrix(outs, matrix, names, counts, genes)
    listed = [i for i in (range(n) if order is None else order) if i not in drop]
    text = [names[i].encode() if ids == "bytes" else int(names[i]) if ids == "number" else names[i] for i in listed]
    frame = pd.DataFrame({"cell_id": text, "x_centroid": xy[listed, 0], "y_centroid": xy[listed, 1], "cell_area": 9.0})
    if cells == "parquet":
        frame.to_parquet(outs / "cells.parquet", index=False)
    else:
        frame.to_csv(outs / cells, index=False)
    experiment = {"major_version": 5, "pixel_size": 0.2125, "panel_organism": organism, "num_cells": n}
    (outs / "experiment.xenium").write_text(json.dumps(experiment))
    if species:
        (outs / "gene_panel.json").write_text(json.dumps({"payload": {"panel": {"species": species}}}))
    if image:
        (outs / f"{prefix}_he_image.ome.tif").write_bytes(b"not opened by cohorts")
    if alignment is not None:
        lines = "\n".join(",".join(map(repr, row)) for row in alignment)
        (outs / f"{prefix}_he_imagealignment.csv").write_text(lines + "\n")
    return xy, counts


def _write_matrix(outs, kind, names, counts, features):
    import h5py
    from scipy import io, sparse

    matrix = sparse.csc_matrix(counts.T)
    if kind == "h5":
        with h5py.File(outs / "cell_feature_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"], group["shape"] = np.array(names, "S"), np.array(matrix.shape, np.int32)
            group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
            for key, column in zip(("id", "name", "feature_type"), zip(*features, strict=True), strict=True):
                group[f"features/{key}"] = np.array(column, "S")
        return
    folder = outs / "cell_feature_matrix"
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as out:
        io.mmwrite(out, matrix)
    for name, lines in (("barcodes", names), ("features", ["\t".join(row) for row in features])):
        with gzip.open(folder / f"{name}.tsv.gz", "wt") as out:
            out.write("\n".join(lines) + "\n")


def to_um(centres, alignment):
    """H&E px to um by the matrix, forwards: the way that 10x describes."""
    return (np.column_stack([centres, np.ones(len(centres))]) @ np.array(alignment).T)[:, :2] * 0.2125


def squares(centres_um, xy, counts, side):
    """Sums of the cells within half a side of each centre."""
    inside = np.abs(xy[:, None] - centres_um[None]).max(axis=2) <= side / 2 + 1e-6
    assert (inside.sum(axis=1) == 1).all()
    return inside.T.astype(int) @ counts


class TestXenium(SectionContract):
    def make_section(self, folder):
        write_xenium(folder / "run")
        return read_cohort(folder, Reading()).sections[0]


class TestFirstReleases(SectionContract):
    def make_section(self, folder):
        write_xenium(folder, matrix="mtx", cells="cells.csv.gz", ids="number", alignment=MIRROR)
        return read_cohort(folder, Reading(spot_um=50)).sections[0]


class TestXeniumWithoutAnImage(SectionContract):
    def make_section(self, folder):
        write_xenium(folder, image=False, alignment=None)
        return read_cohort(folder, Reading()).without_slide[0]


VERSIONS = [("h5", "parquet", "text"), ("h5", "parquet", "bytes"), ("mtx", "cells.csv.gz", "number"),
            ("h5", "cells.csv", "text"), ("mtx", "parquet", "number")]  # fmt: skip


@pytest.mark.parametrize(("matrix", "cells", "ids"), VERSIONS)
@pytest.mark.parametrize("alignment", [TURN, MIRROR])
def test_cells_of_every_release_are_pooled_and_placed(tmp_path, matrix, cells, ids, alignment):
    xy, counts = write_xenium(tmp_path, matrix=matrix, cells=cells, ids=ids, alignment=alignment)
    section = read_cohort(tmp_path, Reading()).sections[0]
    measured = section.load()
    expected = squares(to_um(measured.centres, alignment), xy, counts[:, :3], 100)
    np.testing.assert_array_equal(measured.counts.toarray(), expected)
    assert measured.genes.tolist() == ["ACTB", "KRT5", "CD4"]
    assert measured.gene_ids.tolist() == ["ENSG01", "ENSG02", "ENSG03"]


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_rows_in_any_order_and_cells_that_one_side_lacks_join_by_name(tmp_path_factory, data):
    outs = tmp_path_factory.mktemp("shuffled")
    order = data.draw(st.permutations(range(12)))
    drop = data.draw(st.sets(st.integers(0, 11), max_size=10))
    xy, counts = write_xenium(outs, n=12, order=order, drop=drop)
    measured = read_one(outs, Reading(spot_um=60)).load()
    kept = [i for i in range(12) if i not in drop]
    expected = squares(to_um(measured.centres, TURN), xy[kept], counts[kept, :3], 60)
    np.testing.assert_array_equal(measured.counts.toarray(), expected)
    assert any(f"{len(drop)} of 12 cells" in note for note in measured.notes) == bool(drop)


def test_the_pixel_size_is_that_of_the_h_and_e_image(tmp_path):
    write_xenium(tmp_path)
    section = read_cohort(tmp_path, Reading()).sections[0]
    ((source, mpp),) = section.pixel_size_candidates
    assert (source, mpp) == ("xenium alignment", pytest.approx(0.2125 * 1.28963, rel=1e-4))
    assert section.spot_pitch_um / section.load().pitch_px == pytest.approx(mpp)


def test_controls_are_left_out_and_counted(tmp_path):
    write_xenium(tmp_path)
    note = next(n for n in read_cohort(tmp_path, Reading()).sections[0].load().notes if "no genes" in n)
    assert "1 Unassigned Codeword" in note
    assert "1 control names" in note


def test_an_image_without_alignment_is_not_usable_and_said(tmp_path):
    write_xenium(tmp_path, alignment=None)
    cohort = read_cohort(tmp_path, Reading())
    assert not cohort.sections
    assert "S_he_image.ome.tif has no alignment file" in cohort.skipped[0][1]
    assert cohort.without_slide[0].slide is None


def test_without_an_image_positions_are_px_of_the_morphology_image(tmp_path):
    xy, counts = write_xenium(tmp_path, image=False, alignment=None)
    section = read_cohort(tmp_path, Reading()).without_slide[0]
    measured = section.load()
    expected = squares(measured.centres * 0.2125, xy, counts[:, :3], 100)
    np.testing.assert_array_equal(measured.counts.toarray(), expected)
    assert "px of the morphology image" in section.notes[0]


@pytest.mark.parametrize(
    ("alignment", "said"),
    [
        (((1.0, 0.3, 0), (0, 1.0, 0), (0, 0, 1)), "shears"),
        (((1.0, 0, 0), (0, 1.0, 0), (0.1, 0, 1)), "last row"),
        (((1.0, 0, 0), (0, 1.0, 0)), "no affine map|3 rows"),
    ],
)
def test_an_alignment_that_cannot_be_right_leaves_the_section_without_slide(tmp_path, alignment, said):
    write_xenium(tmp_path, alignment=alignment)
    if len(alignment) == 2:
        (tmp_path / "S_he_imagealignment.csv").write_text("1,0\n0,1\n")
    cohort = read_cohort(tmp_path, Reading())
    assert not cohort.sections
    with pytest.raises(CohortError, match=said):
        read_alignment(tmp_path / "S_he_imagealignment.csv")


def test_the_alignment_of_a_fluorescence_image_is_not_taken(tmp_path):
    write_xenium(tmp_path, alignment=None)
    (tmp_path / "S_if_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    (tmp_path / "S_if_image.ome.tif").write_bytes(b"")
    (tmp_path / "morphology_mip.ome.tif").write_bytes(b"")
    assert not read_cohort(tmp_path, Reading()).sections


def test_several_images_with_their_alignments_are_none(tmp_path):
    write_xenium(tmp_path)
    write_xenium(tmp_path, prefix="T")
    assert "several images" in read_cohort(tmp_path, Reading()).skipped[0][1]


def test_an_image_as_10x_hands_it_out_lies_beside_the_outs(tmp_path):
    for name in ("A_1", "A_2"):
        write_xenium(tmp_path / f"{name}_outs", prefix=name)
        for file in sorted((tmp_path / f"{name}_outs").glob(f"{name}_he*")):
            file.rename(tmp_path / file.name)
    slides = {s.name: s.slide.name for s in read_cohort(tmp_path, Reading()).sections}
    assert slides == {"A_1_outs": "A_1_he_image.ome.tif", "A_2_outs": "A_2_he_image.ome.tif"}


@pytest.mark.parametrize("pointed_at", ["", "P1", "P1/outs"])
def test_a_section_is_named_after_the_folder_above_outs(tmp_path, pointed_at):
    write_xenium(tmp_path / "P1" / "outs")
    assert [s.name for s in read_cohort(tmp_path / pointed_at, Reading()).sections] == ["P1"]


@pytest.mark.parametrize("named", ["cell_feature_matrix.h5", "."])
def test_one_section_is_found_by_its_matrix_or_its_folder(tmp_path, named):
    write_xenium(tmp_path)
    section = read_one(tmp_path / named, Reading())
    assert section.counts == tmp_path / named
    assert section.reader == read_cohort(tmp_path, Reading()).sections[0].reader


@pytest.mark.parametrize(
    ("organism", "species", "found"),
    [("Human", None, "human"), ("N/A", "Mouse", "mouse"), ("Human", "Mouse", None), ("N/A", None, None)],
)
def test_the_species_is_stated_or_unknown(tmp_path, organism, species, found):
    write_xenium(tmp_path, organism=organism, species=species)
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert section.species == found
    assert any("neither" in note for note in section.notes) == (organism == "Human" and species == "Mouse")


def test_names_of_another_run_are_refused_with_an_example_of_both(tmp_path):
    write_xenium(tmp_path, n=5)
    write_xenium(tmp_path / "other", n=5, ids="number")
    (tmp_path / "other" / "cells.parquet").rename(tmp_path / "cells.parquet")
    with pytest.raises(CohortError, match=r"'aaaa0000-1'.*'1'"):
        read_one(tmp_path, Reading()).load()


def test_a_damaged_experiment_file_stops_no_listing(tmp_path):
    write_xenium(tmp_path / "P1")
    write_xenium(tmp_path / "P2")
    (tmp_path / "P2" / "experiment.xenium").write_text("{")
    cohort = read_cohort(tmp_path, Reading())
    assert [s.name for s in cohort.sections] == ["P1"]
    assert "JSON" in dict(cohort.skipped)["P2"]


def test_an_output_that_lacks_its_cells_is_named(tmp_path):
    write_xenium(tmp_path)
    (tmp_path / "cells.parquet").unlink()
    assert "no cells.parquet" in read_cohort(tmp_path, Reading()).skipped[0][1]


def test_the_layout_is_told_from_others(tmp_path):
    write_xenium(tmp_path / "run")
    assert choose_format(tmp_path, None)[0] == "xenium"
    (tmp_path / "empty").mkdir()
    assert not looks_like(tmp_path / "empty")


def write_table(folder, *rows):
    (folder / "t.csv").write_text("\n".join(["counts,slide,positions", *rows]) + "\n")
    return folder / "t.csv"


def test_a_table_that_names_a_slide_must_name_its_alignment(tmp_path):
    write_xenium(tmp_path / "run", image=False, alignment=None)
    (tmp_path / "he.tif").touch()
    with pytest.raises(CohortError, match="no alignment; name its"):
        open_cohort(write_table(tmp_path, "run/cell_feature_matrix.h5,he.tif,"))
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(repr, row)) for row in MIRROR) + "\n")
    section = open_cohort(write_table(tmp_path, "run/cell_feature_matrix.h5,he.tif,a.csv")).sections[0]
    assert section.pixel_size_candidates == (("xenium alignment", pytest.approx(0.2125 * 1.29)),)
    write_xenium(tmp_path / "whole", prefix="S", alignment=MIRROR)
    whole = read_cohort(tmp_path / "whole", Reading()).sections[0]
    np.testing.assert_allclose(section.load().centres, whole.load().centres)
    assert not any("morphology image" in note for note in section.notes)


def test_a_table_written_from_a_run_reads_back_as_the_run(tmp_path):
    write_xenium(tmp_path)
    cohort = read_cohort(tmp_path, Reading(spot_um=50.0))
    table = tmp_path / "t.csv"
    table.write_text(write_manifest(table, cohort, {cohort.sections[0].name: "xenium"}))
    back = open_cohort(table).sections[0]
    assert back.slide == cohort.sections[0].slide
    np.testing.assert_array_equal(back.load().centres, cohort.sections[0].load().centres)
