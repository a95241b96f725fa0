import csv
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import Reading, open_cohort, open_section, read_truth
from genrag_cli.cohorts.base import Cohort, Section
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.cohorts.manifest import COLUMNS, read_manifest, write_manifest
from genrag_cli.cohorts.names import why_unusable
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract
from genrag_cli.types import fingerprint


def write_table(path, *rows, header="section,slide,counts,patient,mpp"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return path


class TestManifestSections(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, write_legacy):
        self.write = write_legacy

    def make_section(self, folder):
        self.write(folder / "data")
        table = write_table(folder / "cohort.csv", "mine,data/images/C2.jpg,data/counts/C2.tsv.gz,P1,0.7")
        return open_cohort(table).sections[0]


def test_a_row_overrides_what_its_layout_says(write_legacy, tmp_path):
    write_legacy(tmp_path)
    (tmp_path / "other.jpg").write_bytes(b"x")
    row = "mine,other.jpg,counts/C2.tsv.gz,P1,0.69,Mouse,visium,55,100,spleen"
    table = write_table(
        tmp_path / "t.csv", row, header="section,slide,counts,patient,mpp,species,technology,spot_um,pitch_um,organ"
    )
    section = open_cohort(table).sections[0]
    assert (section.name, section.patient, section.mpp_given, section.species) == ("mine", "P1", 0.69, "mouse")
    assert (section.technology, section.spot_diameter_um, section.spot_pitch_um) == ("visium", 55, 100)
    assert section.slide == tmp_path / "other.jpg"
    assert section.metadata["organ"] == "spleen"


def test_counts_alone_are_enough(write_legacy, tmp_path):
    write_legacy(tmp_path)
    bare = open_cohort(write_table(tmp_path / "t.csv", "counts/C2.tsv.gz", header="counts")).sections[0]
    layout = open_cohort(tmp_path, format="legacy-st").sections[0]
    assert dataclasses.replace(bare, counts=layout.counts, slide=layout.slide).name == layout.name
    assert fingerprint(bare.load().names, bare.load().centres) == fingerprint(
        layout.load().names, layout.load().centres
    )
    assert bare.spot_pitch_um == layout.spot_pitch_um


def test_a_table_in_the_folder_wins_over_its_layout_and_says_so(write_legacy, tmp_path):
    write_legacy(tmp_path, "C2")
    write_legacy(tmp_path, "C3")
    write_table(tmp_path / "cohort.csv", "counts/C3.tsv.gz", header="counts")
    cohort = open_cohort(tmp_path)
    assert (cohort.format, [s.name for s in cohort.sections]) == ("manifest", ["C3"])
    assert len(open_cohort(tmp_path, format="legacy-st").sections) == 2


def test_one_section_of_a_table_can_be_named(write_legacy, tmp_path):
    write_legacy(tmp_path)
    table = write_table(tmp_path / "t.csv", "mine,,counts/C2.tsv.gz,P1,")
    assert open_section(f"{table}:mine").patient == "P1"
    assert len(read_truth(f"{table}:mine")) == 9


def test_every_bad_row_is_named_at_once(write_legacy, tmp_path):
    write_legacy(tmp_path)
    good = "counts/C2.tsv.gz"
    table = write_table(
        tmp_path / "t.csv",
        f"a,gone.jpg,{good},,",
        f"b,,{good},,-1",
        "c,,gone.h5ad,,",
        "d,,,,",
        f"e,,{good},,",
        f"e,,{good},,",
    )
    with pytest.raises(CohortError) as error:
        open_cohort(table)
    for part in (
        "line 2: slide",
        "gone.jpg does not exist",
        "line 3: mpp '-1'",
        "gone.h5ad",
        "no counts named",
        "'e' has",
    ):
        assert part in error.value.message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("section,slide\na,b\n", "no column counts"),
        ("counts,counts\na,b\n", "twice"),
        ("counts\n", "no section"),
        ("", "no column counts; found nothing"),
        ("counts,mpp\na,b,c\n", "more cells"),
    ],
)
def test_a_table_that_is_none_is_refused(text, why, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CohortError, match=why):
        open_cohort(tmp_path / "t.csv")


def test_counts_of_no_known_layout_and_unknown_formats_are_refused(tmp_path):
    (tmp_path / "x.dat").touch()
    for row, header, why in (
        ("x.dat", "counts", "no known layout"),
        ("x.dat,hset", "counts,format", "Did you mean hest"),
    ):
        with pytest.raises(CohortError, match=why):
            open_cohort(write_table(tmp_path / "t.csv", row, header=header))


def test_positions_are_refused_beside_counts_that_have_their_own(write_hest, tmp_path):
    write_hest(tmp_path)
    (tmp_path / "p.tsv").touch()
    table = write_table(tmp_path / "t.csv", "st/T1.h5ad,p.tsv", header="counts,positions")
    with pytest.raises(CohortError, match="positions are for legacy ST tables and Xenium"):
        open_cohort(table)


def test_tables_with_tabs_are_read(write_legacy, tmp_path):
    write_legacy(tmp_path)
    (tmp_path / "t.tsv").write_text("counts\tpatient\ncounts/C2.tsv.gz\tP1\n")
    assert open_cohort(tmp_path / "t.tsv").sections[0].patient == "P1"


text = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
names = text.filter(lambda name: not why_unusable(name))


@settings(max_examples=30, deadline=None)
@given(
    patient=st.none() | text, species=st.none() | st.sampled_from(["human", "mouse"]),
    mpp=st.none() | st.floats(0.05, 5), pitch=st.none() | st.floats(1, 500), name=names,
)  # fmt: skip
def test_what_is_written_is_read_back(patient, species, mpp, pitch, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    (folder / "st").mkdir()
    for file in ("st/a.h5ad", "a.svs"):
        (folder / file).touch()
    section = Section(
        name, patient, folder / "a.svs", folder / "st" / "a.h5ad", CountsFile(folder / "st" / "a.h5ad"),
        species=species, mpp_given=mpp, spot_pitch_um=pitch,
    )  # fmt: skip
    table = folder / "t.csv"
    table.write_text(write_manifest(table, Cohort(folder, "hest", (section,)), {name: "hest"}), encoding="utf-8")
    back = read_manifest(table, Reading()).sections[0]
    assert (back.name, back.patient, back.species, back.slide) == (name, patient, species, section.slide)
    assert back.mpp_given == (mpp and pytest.approx(mpp))
    assert back.spot_pitch_um == (pitch and pytest.approx(pitch))
    assert tuple(next(csv.reader([table.read_text().splitlines()[0]]))) == COLUMNS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cell", [",", ";", "\t"])
def test_tables_of_any_office_are_read(write_legacy, tmp_path, encoding, end, cell):
    write_legacy(tmp_path)
    rows = (["Counts", " MPP", "Patient", "Organ"], ["counts/C2.tsv.gz", "0.5", '"Doe, J."', '"a\nb\u2028c"'])
    text = "".join(cell.join(row) + end for row in rows)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    cohort = open_cohort(tmp_path / "t.csv")
    section = cohort.sections[0]
    assert (section.mpp_given, section.patient, section.metadata["Organ"]) == (0.5, "Doe, J.", "a\nb\u2028c")
    assert cohort.warnings == ()


def test_a_column_that_is_called_almost_like_one_that_is_read_is_said(write_legacy, tmp_path):
    write_legacy(tmp_path)
    table = write_table(tmp_path / "t.csv", "counts/C2.tsv.gz,P1,spleen", header="counts,patients,organ")
    (said,) = open_cohort(table).warnings
    assert "'patients' is only kept as a fact; was 'patient' meant?" in said


def test_counts_that_two_rows_name_are_refused(write_legacy, tmp_path):
    write_legacy(tmp_path)
    rows = ("a,images/C2.jpg,counts/C2.tsv.gz,P1,", "b,images/C2.jpg,counts/../counts/C2.tsv.gz,P2,")
    with pytest.raises(CohortError, match="line 3: has the counts of line 2"):
        open_cohort(write_table(tmp_path / "t.csv", *rows))


def test_a_quote_that_is_never_closed_is_refused(write_legacy, tmp_path):
    write_legacy(tmp_path)
    with pytest.raises(CohortError, match="unexpected end of data"):
        open_cohort(write_table(tmp_path / "t.csv", '"a,images/C2.jpg,counts/C2.tsv.gz,P1,'))
