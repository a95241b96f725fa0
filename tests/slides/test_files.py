"""Which files a slide consists of, told from names."""

import pytest

from genrag_cli.errors import SlideError
from genrag_cli.slides.files import indexed_files, mirax_files, slide_files


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names(files, folder):
    return [p.relative_to(folder).as_posix() for p in files]


def test_most_slides_are_one_file(tmp_path):
    make(tmp_path, "a.svs", "a.txt", "b.svs", "a/inside.dat")
    assert slide_files(tmp_path / "a.svs") == [tmp_path / "a.svs"]


def test_a_mirax_slide_is_a_file_and_all_that_lies_in_the_folder_of_its_name(tmp_path):
    make(tmp_path, "m.mrxs", "m/Data1.dat", "m/sub/Data0.dat", "m2/Data0.dat")
    assert names(slide_files(tmp_path / "m.mrxs"), tmp_path) == ["m.mrxs", "m/Data1.dat", "m/sub/Data0.dat"]
    assert names(mirax_files(tmp_path / "m.mrxs"), tmp_path) == ["m/Data1.dat", "m/sub/Data0.dat"]
    assert slide_files(make(tmp_path, "alone.MRXS") / "alone.MRXS") == [tmp_path / "alone.MRXS"]


@pytest.mark.parametrize("ending", [".vms", ".vmu", ".VMS"])
def test_an_index_names_its_files_and_nothing_outside_its_folder_is_taken(tmp_path, ending):
    make(tmp_path, "x/a 1.jpg", "x/b.jpg", "x/c.jpg", "secret.jpg", f"x/i{ending}")
    text = "[VMS]\r\nImageFile=a 1.jpg\r\nMap = b.jpg \r\nGone=gone.jpg\r\nUp=../secret.jpg\r\nRoot=/etc/hostname\r\n"
    (tmp_path / "x" / f"i{ending}").write_bytes(text.encode() + b"Odd=\xff\xfe\r\n")
    assert names(indexed_files(tmp_path / "x" / f"i{ending}"), tmp_path / "x") == ["a 1.jpg", "b.jpg"]
    assert names(slide_files(tmp_path / "x" / f"i{ending}"), tmp_path / "x") == [f"i{ending}", "a 1.jpg", "b.jpg"]


def test_an_image_in_zarr_is_all_files_of_its_folder(tmp_path):
    make(tmp_path, "i.zarr/zarr.json", "i.zarr/0/c/0/0", "i.zarr/.hidden")
    assert names(slide_files(tmp_path / "i.zarr"), tmp_path / "i.zarr") == [".hidden", "0/c/0/0", "zarr.json"]


@pytest.mark.real
def test_a_dicom_slide_is_the_files_of_its_series_whichever_is_named(shared_data):
    folder = shared_data / "wsi" / "dicom_cmu1_small"
    files = slide_files(folder)
    assert len(files) > 1
    assert {p.parent for p in files} == {folder}
    for file in files:
        from_one = slide_files(file)
        assert from_one[0] == file
        assert sorted(from_one) == sorted(files)


def test_nothing_at_all_says_so(tmp_path):
    with pytest.raises(SlideError, match=r"gone.svs: no such slide") as raised:
        slide_files(tmp_path / "gone.svs")
    assert "quote" in raised.value.hint


def test_a_folder_that_is_no_slide_is_refused(tmp_path):
    make(tmp_path, "d/notes.txt")
    with pytest.raises(SlideError, match="d"):
        slide_files(tmp_path / "d")
