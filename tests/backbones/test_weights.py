"""Where weights are found, what is said when they are not, and digests."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.weights import digest_weights, fetch_file, find_file, find_or_fetch, join_digests, take_given
from genrag_cli.errors import BackboneError

OWN = WeightsFile(repo="made-up/uni", filenames=("model.safetensors", "pytorch_model.bin"), gated=True)
PINNED = WeightsFile(part="tower", repo="made-up/tower", filenames=("tower.pt",), revision="c0ffee")
SHIPPED = WeightsFile(package="made_up_weights", filenames=("models/net.pth",))
NOWHERE = WeightsFile(part="head", filenames=("head.ckpt",), where="Train it with train.py of made-up/head.")


def sheet_of(*files):
    return BackboneSheet(
        name="toy", kind="encoder", dim=4, tile_px=8, licence="CC-BY-NC-4.0", feature="", source="", weights=files
    )


def put(cache, repo, name, commit="abc123", ref="main"):
    """A file in the hub's cache, laid out as its client lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    blob = folder / "blobs" / "0123"
    link = folder / "snapshots" / commit / name
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"weights")
    link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return link


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub whose use is an error unless a test says what it does."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("the hub was asked"))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """`hub(answer)`: what a download does; returns the calls."""

    def answer_with(answer):
        calls = []

        def download(repo, name, *, revision=None):
            calls.append((repo, name, revision))
            result = answer(name) if callable(answer) else answer
            if isinstance(result, BaseException):
                raise result
            return str(result)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return calls

    return answer_with


def error_of(kind, text="something\nlong", cause=None):
    """An error of the hub's client without the answer of a server that its constructor wants."""
    error = kind.__new__(kind, text)
    error.args, error.__cause__ = (text,), cause
    return error


def test_a_given_file_is_taken_and_nothing_else_is_looked_at(tmp_path):
    path = tmp_path / "any name"
    path.touch()
    assert find_or_fetch(sheet_of(OWN), OWN, path) == path


@pytest.mark.parametrize("laid", ["as on the hub", "flat"])
@pytest.mark.parametrize(("file", "name"), [(OWN, "pytorch_model.bin"), (SHIPPED, "models/net.pth")])
def test_a_given_folder_holds_the_file_by_its_name(tmp_path, file, name, laid):
    path = tmp_path / "w" / (name if laid == "as on the hub" else Path(name).name)
    path.parent.mkdir(parents=True)
    path.touch()
    assert take_given(tmp_path / "w", file, "toy") == path


def test_the_first_name_is_preferred(tmp_path):
    for name in OWN.filenames:
        (tmp_path / name).touch()
    assert take_given(tmp_path, OWN, "toy").name == "model.safetensors"


def test_safetensors_of_a_folder_are_preferred(tmp_path):
    for name in ("pytorch_model.bin", "pytorch_model.safetensors"):
        (tmp_path / name).write_bytes(b"w")
    file = WeightsFile(repo="a/b", filenames=("pytorch_model.bin",))
    assert take_given(tmp_path, file, "uni") == tmp_path / "pytorch_model.safetensors"


def test_a_given_folder_without_the_file_and_a_path_to_nothing_are_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"none of model\.safetensors, pytorch_model\.bin is in") as caught:
        take_given(tmp_path, OWN, "toy")
    assert caught.value.hint == "Name the file itself with --weights FILE."
    with pytest.raises(BackboneError, match=r"backbone toy: no weights at .*gone") as caught:
        take_given(tmp_path / "gone", PINNED, "toy")
    assert "--weights tower=FILE" in caught.value.hint


def test_a_file_that_a_package_ships_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "made_up_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_file(SHIPPED) is None
    (package / "models" / "net.pth").touch()
    assert find_file(SHIPPED) == package / "models" / "net.pth"


@pytest.mark.parametrize("package", ["made_up_absent", "made_up_absent.inner"])
def test_a_package_that_is_not_installed_is_named(package):
    file = WeightsFile(package=package, filenames=("net.pth",))
    assert find_file(file) is None
    with pytest.raises(BackboneError, match=f"come with the package {package}, which is not installed") as caught:
        find_or_fetch(sheet_of(file), file)
    assert caught.value.hint == f"Install {package}, or name the file with --weights FILE."


def test_the_hubs_cache_is_found_by_branch_and_by_commit(cache):
    assert find_file(OWN) is None
    assert find_file(PINNED) is None
    own = put(cache, "made-up/uni", "pytorch_model.bin")
    pinned = put(cache, "made-up/tower", "tower.pt", commit="c0ffee", ref="")
    assert find_or_fetch(sheet_of(OWN), OWN) == own
    assert find_or_fetch(sheet_of(PINNED), PINNED) == pinned


def test_another_commit_than_the_pinned_one_is_not_taken(cache):
    put(cache, "made-up/tower", "tower.pt", commit="0ther")
    assert find_file(PINNED) is None


def test_a_link_to_a_blob_that_was_taken_away_is_not_there(cache):
    put(cache, "made-up/uni", "pytorch_model.bin")
    (cache / "models--made-up--uni" / "blobs" / "0123").unlink()
    assert find_file(OWN) is None


def test_hf_home_says_where_the_cache_is_and_offline_is_honoured(tmp_path):
    home = tmp_path / "home"
    path = put(home / "hub", "made-up/tower", "tower.pt", commit="c0ffee", ref="")
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): sys.exit('a socket was used')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from genrag_cli.backbones.base import BackboneSheet, WeightsFile\n"
        "from genrag_cli.backbones.weights import fetch_file, find_file\n"
        "from genrag_cli.errors import BackboneError\n"
        "print(find_file(WeightsFile(repo='made-up/tower', filenames=('tower.pt',), revision='c0ffee')))\n"
        "file = WeightsFile(repo='made-up/gone', filenames=('gone.pt',))\n"
        "sheet = BackboneSheet('toy', 'encoder', 4, 8, 'MIT', '', '', weights=(file,))\n"
        "try: fetch_file(sheet, file)\n"
        "except BackboneError as error: print(error.message)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**env, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, said = done.stdout.splitlines()
    assert Path(found) == path
    assert "gone.pt of made-up/gone, cannot be had" in said
    assert "HF_HUB_OFFLINE is set" in said


def test_what_is_nowhere_on_this_machine_is_downloaded_at_its_revision(hub, tmp_path):
    calls = hub(tmp_path / "tower.pt")
    assert find_or_fetch(sheet_of(PINNED), PINNED) == tmp_path / "tower.pt"
    assert calls == [("made-up/tower", "tower.pt", "c0ffee")]


def test_the_second_name_is_asked_for_where_the_first_is_not_in_the_repository(hub, tmp_path):
    calls = hub(lambda name: error_of(EntryNotFoundError) if name == "model.safetensors" else tmp_path / name)
    assert fetch_file(sheet_of(OWN), OWN) == tmp_path / "pytorch_model.bin"
    assert [name for _, name, _ in calls] == ["model.safetensors", "pytorch_model.bin"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (error_of(GatedRepoError), "the hub asks for its licence to be accepted"),
        (error_of(LocalEntryNotFoundError, cause=ConnectionError()), "the hub cannot be reached (ConnectionError)"),
        (error_of(EntryNotFoundError), "no such file"),
        (error_of(RepositoryNotFoundError, "401 Client Error.\nmore"), "401 Client Error."),
        (OSError("disk full\nmore"), "disk full"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("the HTTP library's own"), "the HTTP library's own"),
    ],
    ids=["gated", "offline", "no such file", "no such repository", "disk", "silent", "foreign"],
)
def test_a_failure_names_file_licence_command_and_what_to_copy(hub, error, reason):
    calls = hub(error)
    with pytest.raises(BackboneError) as caught:
        find_or_fetch(sheet_of(OWN), OWN)
    what, _, why = caught.value.message.partition(", cannot be had: ")
    assert what == "backbone toy: its weights, model.safetensors of made-up/uni"
    assert reason in why
    assert "\n" not in caught.value.message
    licence, fetch, copy = caught.value.hint.splitlines()
    assert "CC-BY-NC-4.0" in licence
    assert "made-up/uni" in licence
    assert "HF_TOKEN" in licence
    assert fetch.endswith("generag backbones fetch toy")
    assert "copy model.safetensors of made-up/uni to this machine and name it with --weights FILE" in copy
    assert "HF_HOME" in copy
    assert len(calls) == (2 if reason == "no such file" else 1)


def test_offline_by_wish_is_told_from_offline_by_fact(hub, monkeypatch):
    hub(error_of(LocalEntryNotFoundError))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"the hub cannot be reached \(HF_HUB_OFFLINE is set\)"):
        fetch_file(sheet_of(OWN), OWN)


def test_an_open_repository_asks_for_no_licence_and_a_part_is_named_as_one(hub):
    hub(error_of(LocalEntryNotFoundError))
    with pytest.raises(BackboneError, match=r"backbone toy: tower weights, tower\.pt of made-up/tower") as caught:
        fetch_file(sheet_of(PINNED), PINNED)
    assert "licence" not in caught.value.hint
    assert "--weights tower=FILE" in caught.value.hint


def test_weights_that_are_published_nowhere_say_where_they_come_from():
    assert find_file(NOWHERE) is None
    with pytest.raises(BackboneError, match="head weights are not published on a hub") as caught:
        find_or_fetch(sheet_of(NOWHERE), NOWHERE)
    assert caught.value.hint == "Train it with train.py of made-up/head. Name them with --weights head=FILE."


def test_digest_is_that_of_the_content_and_follows_a_change(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    assert digest_weights(path) == sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert digest_weights(path) == sha256(b"three").hexdigest()


def test_a_file_is_hashed_once_a_process(tmp_path, monkeypatch):
    path = tmp_path / "w.bin"
    path.write_bytes(b"content")
    first = digest_weights(path)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert digest_weights(path) == first


def test_digests_of_several_files_are_one_that_knows_their_order():
    one, two = sha256(b"1").hexdigest(), sha256(b"2").hexdigest()
    assert join_digests(one) == one
    assert join_digests(one, two) == sha256(f"{one}\n{two}".encode()).hexdigest()
    assert len({join_digests(one, two), join_digests(two, one), one, two}) == 4
