"""From what a person gives to a list of slides with names."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.batch.inputs import Job, find_jobs, parse_share, share_of_array, take_share
from genrag_cli.pipeline.options import SlideOptions


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def make_dicom(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)


def found(*texts):
    return {job.name: job.slide for job in find_jobs([str(t) for t in texts])}


def write_table(path, *rows, **how):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows(rows)
    return path


# Slides, folders, patterns, addresses


def test_a_slide_by_name_is_a_job_whether_or_not_it_is_there():
    assert find_jobs(["here/a.b.svs", "gone.png"]) == [Job("here/a.b.svs", "a.b"), Job("gone.png", "gone")]


def test_a_slide_given_twice_is_one_job(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a.svs"))
    assert len(find_jobs(["a.svs", "./a.svs", str(tmp_path / "a.svs"), "."])) == 1


def test_a_folder_is_searched_through_in_order(tmp_path):
    make(tmp_path, "b.svs", "a.TIFF", "deep/er/c.ndpi", "notes.txt", "table.csv", "picture.png", "deep/d.czi")
    assert list(found(tmp_path)) == ["a", "b", "d", "c"]


def test_what_is_hidden_in_a_folder_is_left_alone(tmp_path):
    make(tmp_path, "a.svs", ".b.svs", "._a.svs", ".Trash/c.svs", "d/.e.tif")
    assert list(found(tmp_path)) == ["a"]


def test_the_data_of_a_mirax_slide_is_no_slide(tmp_path):
    make(tmp_path, "m.mrxs", "m/Data0000.dat", "m/Slidedat.ini", "m/inner.tif", "n/o.tif")
    assert list(found(tmp_path)) == ["m", "o"]


def test_a_folder_with_a_dicom_series_is_a_slide(tmp_path):
    make_dicom(tmp_path / "case" / "1.dcm")
    make_dicom(tmp_path / "case" / "2.dcm")
    make_dicom(tmp_path / "plain" / "IM0001")
    make(tmp_path, "case/beside.svs", "junk/README")
    assert found(tmp_path) == {
        "case": str(tmp_path / "case"), "beside": str(tmp_path / "case/beside.svs"), "plain": str(tmp_path / "plain")
    }  # fmt: skip


@pytest.mark.parametrize("mark", ["zarr.json", ".zattrs"])
def test_an_image_in_zarr_is_a_slide_and_its_chunks_are_not(tmp_path, mark):
    make(tmp_path, f"image.ome.zarr/{mark}", "image.ome.zarr/0/c/0.tif", "a.svs")
    assert list(found(tmp_path)) == ["a", "image.ome.zarr"]
    assert found(tmp_path / "image.ome.zarr") == {"image.ome.zarr": str(tmp_path / "image.ome.zarr")}


def test_a_folder_without_slides_is_refused(tmp_path):
    make(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match="no slide in this folder") as raised:
        find_jobs([str(tmp_path)])
    assert ".svs" in raised.value.hint


def test_a_pattern_gives_what_matches_in_order(tmp_path):
    make(tmp_path, "b.svs", "a.svs", "c.tif", "sub/d.svs")
    assert list(found(tmp_path / "*.svs")) == ["a", "b"]
    assert sorted(found(tmp_path / "**" / "*.svs")) == ["a", "b", "d"]
    assert list(found(tmp_path / "s*")) == ["d"]
    with pytest.raises(UsageError, match="no file matches this pattern"):
        find_jobs([str(tmp_path / "*.ndpi")])


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    make(tmp_path, "scan [1].svs", "scan 1.svs")
    assert found(tmp_path / "scan [1].svs") == {"scan [1]": str(tmp_path / "scan [1].svs")}


def test_an_address_is_kept_as_it_is():
    (job,) = find_jobs(["s3://bucket/some/case.svs"])
    assert (job.slide, job.name, job.is_remote) == ("s3://bucket/some/case.svs", "case", True)
    assert not Job("a.svs", "a").is_remote


# Names


def test_slides_called_alike_are_told_apart_by_the_folders_above(tmp_path):
    make(tmp_path, "p1/x.svs", "p2/x.svs", "p2/y.svs")
    assert sorted(found(tmp_path)) == ["p1_x", "p2_x", "y"]
    make(tmp_path, "q/p1/x.svs")
    assert sorted(found(tmp_path / "p1", tmp_path / "q")) == sorted([f"{tmp_path.name}_p1_x", "q_p1_x"])


def test_files_that_differ_by_their_ending_only_are_told_apart_by_it(tmp_path):
    make(tmp_path, "x.svs", "x.tif")
    assert sorted(found(tmp_path)) == ["x_svs", "x_tif"]
    make(tmp_path, "p/x.svs")
    assert sorted(found(tmp_path)) == sorted([f"{tmp_path.name}_x_svs", f"{tmp_path.name}_x_tif", "p_x"])


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide", "name"], ["a.svs", "n"], ["b.svs", "n"])
    with pytest.raises(UsageError, match="two slides would both be called n") as raised:
        find_jobs([str(path)])
    assert "slide,name" in raised.value.hint


def test_alike_names_in_different_folders_of_outputs_stay(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide", "out"], ["p1/x.svs", "o1"], ["p2/x.svs", "o2"])
    assert [j.name for j in find_jobs([str(path)])] == ["x", "x"]


def test_alike_names_beside_each_other_are_told_apart_though_the_outputs_have_names(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide", "out"], ["p1/x.svs", "o/one.h5ad"], ["p2/x.svs", "o/two.h5ad"])
    assert [j.name for j in find_jobs([str(path)])] == ["p1_x", "p2_x"]


PATHS = st.lists(
    st.builds(
        lambda folders, stem, ending: "/".join((*folders, stem + ending)),
        st.lists(st.sampled_from(["p", "q", "p_q", "x"]), max_size=3),
        st.sampled_from(["x", "y", "p_x", "x_svs"]),
        st.sampled_from([".svs", ".tif", ""]),
    ),
    min_size=1, max_size=8, unique=True,
)  # fmt: skip


@given(PATHS, st.randoms(use_true_random=False))
def test_names_differ_and_do_not_depend_on_the_order_given(paths, random):
    def names(order):
        try:
            return {job.slide: job.name for job in find_jobs(order)}
        except UsageError:
            return None

    one, other = names(paths), names(random.sample(paths, len(paths)))
    assert one == other
    if one is not None:
        assert set(one) == set(paths)
        assert max(Counter(one.values()).values()) == 1
        assert not any("/" in name or name in ("", ".", "..") for name in one.values())


@given(PATHS)
def test_names_that_were_different_already_are_kept(paths):
    stems = Counter(Path(path).stem for path in paths)
    try:
        jobs = find_jobs(paths)
    except UsageError:
        return
    for job in jobs:
        stem = job.path.stem
        if all(n == 1 for n in stems.values()):
            assert job.name == stem
        assert stem in job.name


# Manifests


def test_a_manifest_says_everything_of_each_slide(tmp_path):
    make(tmp_path, "spots.csv")
    path = write_table(
        tmp_path / "m.csv",
        ["slide", "name", "mpp", "fov_um", "pitch_um", "min_tissue", "spots", "tissue", "lattice", "max_bad_tiles",
         "out", "block", "stain"],
        ["a.svs", "first", "0.25", "", "120", "0.3", "spots.csv", "otsu", "hex", "5%", "o/p.h5ad", "B4", "H&E"],
        [str(tmp_path / "b.svs"), *[""] * 12],
    )  # fmt: skip
    one, two = find_jobs([str(path)])
    assert (one.slide, one.name, one.out) == (str(tmp_path / "a.svs"), "first", tmp_path / "o" / "p.h5ad")
    assert one.more == {"block": "B4", "stain": "H&E"}
    settled = one.settle(SlideOptions(mpp=9.0, fov_um=55.0))
    assert settled == SlideOptions(
        mpp=0.25, fov_um=55.0, pitch_um=120.0, spots=str(tmp_path / "spots.csv"), tissue="otsu", lattice="hex",
        min_tissue=0.3, max_bad_tiles="5%", name="first",
    )  # fmt: skip
    assert (two.slide, two.name, two.out, two.options, two.more) == (str(tmp_path / "b.svs"), "b", None, {}, {})


def test_what_a_manifest_says_of_the_pitch_takes_the_place_of_the_commands_overlap(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide", "pitch_um", "overlap"], ["a.svs", "100", ""], ["b.svs", "", "0.5"])
    one, two = find_jobs([str(path)])
    assert one.settle(SlideOptions(overlap=0.25)).overlap is None
    assert two.settle(SlideOptions(pitch_um=50)).pitch_um is None


def test_spots_of_a_section_and_methods_of_tissue_are_no_paths(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide", "spots", "tissue"], ["a.svs", "cohort:P1_1", "density"])
    (job,) = find_jobs([str(path)])
    assert job.options == {"spots": "cohort:P1_1", "tissue": "density"}


def test_addresses_in_a_manifest_stay_addresses(tmp_path):
    path = write_table(tmp_path / "m.csv", ["slide"], ["gs://bucket/a.svs"])
    assert found(path) == {"a": "gs://bucket/a.svs"}


@pytest.mark.parametrize(
    "text",
    [
        "slide,mpp\na.svs,0.5\n", "slide\tmpp\na.svs\t0.5\n", "\ufeffslide,mpp\r\na.svs,0.5\r\n",
        " slide , mpp \n a.svs , 0.5 \n", "slide,mpp\n\n,\na.svs,0.5\n\n", '"slide","mpp"\n"a.svs","0.5"',
        "mpp,slide\n0.5,a.svs\n",
    ],
)  # fmt: skip
def test_a_manifest_may_come_from_any_spreadsheet(tmp_path, text):
    (tmp_path / "m.csv").write_bytes(text.encode())
    assert find_jobs([str(tmp_path / "m.csv")]) == [Job(str(tmp_path / "a.svs"), "a", None, {"mpp": 0.5})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column slide; found nothing"),
        ("silde,mpp\na,1\n", "no column slide; found silde, mpp"),
        ("a.svs\nb.svs\n", "no column slide; found a.svs"),
        ("slide;mpp\na;1\n", "no column slide"),
        ("slide,mpp\n", "no slide in this manifest"),
        ("slide,mpp,mpp\na.svs,1,2\n", "two columns are called mpp"),
        ("slide,mpp\na.svs,0.5\nb.svs,quarter\n", "line 3: mpp 'quarter' is no number"),
        ("slide,mpp\n,0.5\n", "line 2: expected a slide"),
        ("slide,mpp\na.svs,0.5,extra\n", "line 2: expected a slide"),
        ("slide,pitch_um\na.svs,-5\n", "line 2: --pitch-um -5 asked"),
        ("slide,fov_um\na.svs,nan\n", "line 2: --fov-um nan asked"),
        ("slide,min_tissue\na.svs,2\n", "line 2: --min-tissue 2 asked"),
        ("slide,max_bad_tiles\na.svs,many\n", "line 2: --max-bad-tiles many asked"),
        ("slide,lattice\na.svs,triangular\n", "line 2: --lattice triangular asked"),
        ("slide,name\na.svs,x/y\n", "line 2: 'x/y' cannot be the name of a file"),
        ("slide,name\na.svs,..\n", "line 2: '..' cannot be the name of a file"),
        ('slide,name\n"a.svs,b\n', "cannot be read as a manifest"),
        ("slide,name\na.svs,b\0\n", "bytes of zero"),
    ],
)
def test_a_manifest_that_cannot_be_right_names_file_line_and_value(tmp_path, text, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UsageError) as raised:
        find_jobs([str(tmp_path / "m.csv")])
    assert raised.value.message.startswith(str(tmp_path / "m.csv"))
    assert said in raised.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00s", b"slide,name\na.svs,\xe9\n"])
def test_a_manifest_that_is_no_utf8_is_refused(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a manifest"):
        find_jobs([str(tmp_path / "m.csv")])


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as a manifest"):
        find_jobs([str(tmp_path / "m.csv")])


def test_a_mistyped_column_names_the_right_one(tmp_path):
    with pytest.raises(UsageError) as raised:
        find_jobs([str(write_table(tmp_path / "m.csv", ["slides"], ["a.svs"]))])
    assert "Did you mean slides?" in raised.value.hint


# Shares


@given(st.integers(1, 20), st.integers(0, 50))
def test_shares_part_all_slides_between_them(n, n_jobs):
    jobs = [Job(f"{i}.svs", str(i)) for i in range(n_jobs)]
    shares = [take_share(jobs, (i, n)) for i in range(n)]
    assert sorted(j.slide for share in shares for j in share) == sorted(j.slide for j in jobs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("text", "share"), [("0/1", (0, 1)), ("3/4", (3, 4)), (" 0 / 2 ", (0, 2))])
def test_a_share_counts_from_0(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "1/2/3", "0.5/2", "²/3", "/3", "1/"])
def test_a_share_that_cannot_be_right_is_refused(text):
    with pytest.raises(UsageError, match="--shard") as raised:
        parse_share(text)
    assert "0/4" in raised.value.hint


def array(number, count, first=None, step=None):
    words = {"ID": number, "COUNT": count, "MIN": first, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in words.items() if v is not None}


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        (array(0, 4, 0, 1), (0, 4)), (array(3, 4, 0, 1), (3, 4)), (array(1, 3, 1, 1), (0, 3)),
        (array(15, 4, 0, 5), (3, 4)), (array(7, 3, 1, 3), (2, 3)), (array(2, 4), (2, 4)),
        (array(0, 1, 0, 1), None), ({}, None), (array("", 4), None), (array(3, ""), None), (array("x", "y"), None),
        (array(7, 3, 1, 1), None), (array(2, 3, 0, 5), None), (array("²", 3), None), (array(2, 3, 0, 0), (2, 3)),
    ],
)  # fmt: skip
def test_a_task_of_an_array_has_its_share(environment, share):
    assert share_of_array(environment) == share


@given(st.integers(0, 30), st.integers(1, 7), st.integers(2, 12))
def test_the_tasks_of_any_even_array_have_a_share_each(first, step, count):
    tasks = [share_of_array(array(first + i * step, count, first, step)) for i in range(count)]
    assert tasks == [(i, count) for i in range(count)]
