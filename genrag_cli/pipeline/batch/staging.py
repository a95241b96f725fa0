"""Slides on local disk: copied there while another is worked on, and removed when they are done with.

Everything lies in a folder of this process alone, which only its owner may read; nothing else is ever removed but what
dead processes of this machine left in folders of their own. A file within is locked for as long as its owner lives,
whichever container it runs in. Knows paths, addresses and free space; opens no slide.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from genrag_cli import stopping
from genrag_cli.errors import GeneragError, SlideError, UsageError
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.slides.files import slide_files
from genrag_cli.stores.atomic import explain, remove
from genrag_cli.types import Listener, Progress

PREFIX, MARK = "generag-stage-", ".generag-stage.json"
SPARE = 256 << 20
"""Bytes that are left free."""
_CHUNK = 8 << 20
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
"""What servers call the version of a file."""


class Stage:
    """A private folder on local disk.

    Args:
        folder: where it is made.

    Raises:
        OutputError: where it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / f"{PREFIX}{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        _sweep(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.own.mkdir(mode=0o700)
            self._lock = _mark(self.own)
        except OSError as error:
            raise explain(error, self.own) from error

    def fetch(self, job: Job, listener: Listener) -> Path:
        """Copies a slide with all its files; `drop` what is returned.

        Raises:
            SlideError: where it cannot be read, changes meanwhile, or does not fit.
            Stopped: between two pieces, where that was asked for.
        """
        place = self.own / uuid.uuid4().hex[:8]
        place.mkdir()
        try:
            with listener.timed("stage"):
                return self._fetch_remote(job, place, listener) if job.is_remote else self._copy(job, place, listener)
        except BaseException:
            remove(place)
            raise

    def name_slide(self, error: GeneragError, copy: Path | None, job: Job) -> None:
        """Has an error name the slide in place of its copy, which is about to go."""
        if copy is not None:
            error.message, error.hint = (t.replace(str(copy), job.slide) for t in (error.message, error.hint))

    def drop(self, path: Path) -> None:
        """Removes a copy."""
        for parent in path.parents:
            if parent.parent == self.own:
                remove(parent)

    def close(self) -> None:
        """Removes the folder."""
        remove(self.own)
        self._lock.close()

    def _copy(self, job: Job, place: Path, listener: Listener) -> Path:
        path = job.path
        with _reading(job):
            files = slide_files(path)
            before = [_stamp(file) for file in files]
        self._expect_room(job, sum(size for size, _ in before))
        root = path if path.is_dir() else path.parent
        target = place / path.name if path.is_dir() else place
        told = _Told(job, sum(size for size, _ in before), listener)
        for file in files:
            copy = target / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _reading(job), file.open("rb") as source:
                self._pour(source, copy, told)
        with _reading(job):
            after = [_stamp(file) for file in files]
        if after != before:
            raise _changed(job)
        return place / path.name

    def _fetch_remote(self, job: Job, place: Path, listener: Listener) -> Path:
        system, inside = open_address(job.slide)
        name = inside.rstrip("/").rpartition("/")[2]
        if Path(name).suffix.lower() in (".mrxs", ".vms", ".vmu", ".zarr"):
            raise SlideError(
                f"{job.slide}: a slide of several files cannot be fetched from an address", "Copy it first."
            )
        with _reading(job):
            size = int(system.info(inside).get("size") or 0)
        self._expect_room(job, size)
        told = _Told(job, size, listener)
        with _reading(job), system.open(inside, "rb") as source:
            self._pour(source, place / name, told)
        return place / name

    def _pour(self, source: Any, target: Path, told: "_Told") -> None:
        with _writing(target):
            sink = target.open("wb")
        try:
            while piece := source.read(_CHUNK):
                stopping.check()
                with _writing(target):
                    sink.write(piece)
                told.more(len(piece))
        finally:
            with _writing(target):
                sink.close()

    def _expect_room(self, job: Job, size: int) -> None:
        free = shutil.disk_usage(self.own).free
        if size + SPARE > free:
            raise SlideError(
                f"{job.slide}: {size / 2**30:.2f} GiB do not fit into --stage {self.folder}, where "
                f"{free / 2**30:.2f} GiB are free",
                "Free some space there, give another --stage, or leave it out.",
            )


class _Told:
    """Progress of one copy."""

    def __init__(self, job: Job, total: int, listener: Listener) -> None:
        self.job, self.total, self.listener, self.done = job, total, listener, 0

    def more(self, n: int) -> None:
        self.done += n
        if self.done > self.total > 0:  # it grows as it is read, and may never end
            raise _changed(self.job)
        self.listener.progress(Progress(f"stage {self.job.name}", self.done >> 20, max(1, self.total >> 20), "MiB"))


def _changed(job: Job) -> SlideError:
    return SlideError(f"{job.slide}: changed while it was copied", "Run the same command again once it is complete.")


def open_address(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path within.

    Raises:
        UsageError: where the package for it is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(
            f"{address}: addresses need the package fsspec", "pip install 'generag[remote]', or copy the slide."
        ) from error
    try:
        system, inside = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{address}: {error}", "Install the package it names, or copy the slide first.") from error
    return system, str(inside)


def remote_stamp(address: str) -> list[int]:
    """Size, and a number that changes with what the server says of the file.

    Raises:
        SlideError: where the file is not there.
    """
    system, inside = open_address(address)
    try:
        about = system.info(inside)
    except (OSError, ValueError) as error:
        raise SlideError(f"{address}: cannot be reached: {error}", "Check the address and the network.") from error
    word = next((str(about[key]) for key in _VERSIONS if about.get(key)), "")
    return [int(about.get("size") or 0), int(hashlib.sha256(word.encode()).hexdigest()[:12], 16)]


def place_for_remote(stage: Path | None, jobs: Sequence[Job], environment: dict[str, str]) -> Path | None:
    """Where slides are copied to: as asked, else, for addresses, the job's own scratch."""
    if stage is not None or not any(job.is_remote for job in jobs):
        return stage
    return Path(environment.get("SLURM_TMPDIR") or environment.get("TMPDIR") or "/tmp")


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


@contextlib.contextmanager
def _reading(job: Job) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise SlideError(f"{job.slide}: cannot be copied: {error}", "Is its disk or server there?") from error


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, target) from error


def _mark(own: Path) -> IO[bytes]:
    """Says whose a folder is; never there without its lock."""
    import fcntl

    new = own / f"{MARK}.new"
    lock = new.open("x+b", buffering=0)
    try:
        lock.write(json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode())
        with contextlib.suppress(OSError):  # a disk without locks, where nothing is swept either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(own / MARK)
    except BaseException:
        lock.close()
        raise
    return lock


def _sweep(folder: Path) -> None:
    """Removes what dead processes of this machine left."""
    import fcntl

    for left in folder.glob(f"{PREFIX}*"):
        try:
            with (left / MARK).open("r+b") as mark:
                if json.loads(mark.read())["host"] != os.uname().nodename:  # its locks may not be seen from here
                    continue
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
        except (OSError, ValueError, KeyError, TypeError):
            continue
