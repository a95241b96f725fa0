"""`generag cohort`: what a cohort holds, and the table of it."""

import json
import shutil

import pytest

from genrag_cli.synthetic import write_cohort


def look(generag, *args):
    done = generag("cohort", "info", *args, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    return said, {s["name"]: s for s in said["sections"]}


def test_what_a_cohort_holds_is_said(generag, cohort):
    said, sections = look(generag, cohort, "--patients", "prefix")
    assert said["format"] == "legacy-st"
    assert said["patients"] == ["P1", "P2", "P3"]
    assert said["n_shared_genes"] == 60
    one = sections["P1_1"]
    assert (one["species"], one["n_genes"], one["dropped_genes"]) == ("human", 60, 0)
    assert one["mpp"] == pytest.approx(1.2, rel=1e-3)
    assert (one["mpp_source"], one["fov_um"], one["problems"]) == ("spot pitch", 200, [])
    shown = generag("cohort", "info", cohort).out
    assert "patient of 3 of 3 sections is unknown" in shown
    assert "spot pitch" in shown


@pytest.fixture
def copy(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "cohort")


def test_bad_sections_do_not_hide_the_good_ones(generag, copy):
    (copy / "counts" / "P1_1.tsv.gz").write_bytes(b"not gzip")
    (copy / "images" / "P2_1.tif").unlink()
    said, sections = look(generag, copy)
    assert "cannot be read" in sections["P1_1"]["problems"][0]
    assert "skipped: no image" in sections["P2_1"]["problems"][0]
    assert (sections["P3_1"]["problems"], said["n_shared_genes"]) == ([], 60)


def test_spots_that_miss_the_tissue_or_the_image_are_said(generag, copy):
    for name, shift in (("P1_1", 5000), ("P2_1", -120)):
        path = copy / "spots" / f"{name}_selection.tsv"
        header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        moved = [[*r[:4], str(float(r[4]) + shift), *r[5:]] for r in rows]
        path.write_text("\n".join("\t".join(r) for r in [header, *moved]) + "\n")
    _, sections = look(generag, copy)
    assert "lie outside the 1200 x 1200 px" in sections["P1_1"]["problems"][0]
    assert sections["P2_1"]["darkness"] < sections["P3_1"]["darkness"]


def test_sources_of_the_pixel_size_that_disagree_are_said(generag, tmp_path):
    write_cohort(tmp_path, layout="hest", patients=1, size_px=1200, n_genes=60)
    table = next(tmp_path.glob("HEST_*.csv"))
    text = table.read_text(encoding="utf-8-sig").replace("1.2,1.2", "0.5,1.2")
    table.write_text(text, encoding="utf-8-sig")
    _, sections = look(generag, tmp_path)
    others = dict(sections["P1_1"]["mpp_others"])
    assert sections["P1_1"]["mpp_source"] == "spot pitch"
    assert others["hest pixel_size_um_embedded"] == 0.5
    assert "hest pixel_size_um_embedded says 0.5" in generag("cohort", "info", tmp_path).out


def test_a_table_is_written_once_and_not_over_corrections(generag, copy):
    first = generag("cohort", "scan", copy, "--patients", "prefix")
    assert first.code == 0
    table = copy / "cohort.csv"
    lines = table.read_text().splitlines()
    assert lines[1].startswith("P1_1,legacy-st,counts/P1_1.tsv.gz,spots/P1_1_selection.tsv,images/P1_1.tif,,P1,")
    table.write_text("\n".join(lines).replace("P2_1,", "renamed,") + "\n")
    generag("cohort", "scan", copy).expect_refusal(1, "differs", "--overwrite")
    said, sections = look(generag, copy)
    assert said["format"] == "manifest"
    assert set(sections) == {"P1_1", "renamed", "P3_1"}
    assert generag("cohort", "scan", copy, "--overwrite").code == 0
    assert "already there" in generag("cohort", "scan", copy).err


def test_scan_finds_counts_and_slides_in_any_folder(generag, cohort, tmp_path):
    write_cohort(tmp_path / "h", layout="hest", patients=2, size_px=1200, n_genes=60)
    (tmp_path / "mine" / "tables").mkdir(parents=True)
    (tmp_path / "mine" / "pictures").mkdir()
    for name in ("P1_1", "P2_1"):
        shutil.copy(tmp_path / "h" / "st" / f"{name}.h5ad", tmp_path / "mine" / "tables")
    shutil.copy(tmp_path / "h" / "wsis" / "P1_1.tif", tmp_path / "mine" / "pictures")
    done = generag("cohort", "scan", tmp_path / "mine", "--dry-run")
    rows = {line.split(",")[0]: line for line in done.out.splitlines()}
    assert "pictures/P1_1.tif" in rows["P1_1"]
    assert "no image is called like it; 1 images in all" in rows["P2_1"]
    assert not (tmp_path / "mine" / "cohort.csv").exists()


def test_scan_refuses_a_folder_without_counts(generag, tmp_path):
    (tmp_path / "a.txt").touch()
    generag("cohort", "scan", tmp_path).expect_refusal(1, "nothing in it looks like counts", "columns")


@pytest.mark.real
def test_her2st_is_read_with_no_option(generag, shared_data):
    said, sections = look(generag, shared_data / "her2st")
    assert list(sections) == ["B4", "C2", "C3", "C4", "C5", "A1"]
    assert "skipped: no image" in sections.pop("A1")["problems"][0]
    for one in sections.values():
        assert one["mpp"] == pytest.approx(0.69, rel=0.02)  # 200 um between spots, about 290 px
        assert one["darkness"] > 0.98
        assert (one["species"], one["problems"]) == ("human", [])
    assert said["n_shared_genes"] > 10_000


@pytest.mark.real
def test_space_ranger_folders_are_read_with_no_option(generag, shared_data):
    said, sections = look(generag, shared_data / "visium_small")
    assert said["format"] == "space-ranger"
    assert set(sections) == {"scanpy_1.0.0", "squidpy_100spots"}
    for one in sections.values():
        assert one["mpp"] == pytest.approx(100 / 138, rel=0.02)
        assert "tissue_hires_image.png is blank" in one["problems"][0]
        assert (one["species"], one["n_spots"], one["technology"]) == ("human", 100, "visium")


@pytest.mark.real
def test_cells_of_xenium_are_read_with_no_option(generag, shared_data):
    _, sections = look(generag, shared_data / "xenium_tiny")
    one = sections["NCBI858"]
    assert one["n_genes"] == 338
    assert one["mpp"] is None  # nothing in the folder states it, so nothing is guessed
    assert any("--mpp" in text for text in [*one["problems"], *one["notes"]])
    _, sections = look(generag, shared_data / "xenium_tiny", "--mpp", "2.125")
    assert sections["NCBI858"]["mpp"] == 2.125
    assert sections["NCBI858"]["darkness"] > 0.6
