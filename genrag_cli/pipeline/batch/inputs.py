"""From what a person gives, slides, folders, patterns, tables and addresses, to a list of jobs.

Knows names and tables; opens no slide. Two slides never get one name: where their files are called alike, the folders
above them, then the ending, tell them apart.
"""

import csv
import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genrag_cli.errors import UsageError, nearest
from genrag_cli.pipeline.options import SlideOptions
from genrag_cli.slides.dicom import is_dicom

SUFFIXES = frozenset(
    (".svs", ".ndpi", ".vms", ".vmu", ".mrxs", ".scn", ".bif", ".czi", ".tif", ".tiff", ".svslide", ".btf", ".tf8")
)
"""What counts as a slide in a folder; anything may be given by name."""
TABLES = (".csv", ".tsv")
_NUMBERS = ("mpp", "fov_um", "pitch_um", "overlap", "min_tissue")
_TEXTS = ("spots", "tissue", "lattice", "max_bad_tiles")
_PATHS = ("spots", "tissue")
COLUMNS = ("slide", "out", "name", *_NUMBERS, *_TEXTS)
"""Of a manifest; others are kept as they are."""
REMOTE = "://"


@dataclass(frozen=True)
class Job:
    """One slide to work on."""

    slide: str
    """Path or address, as given; empty where there is none (features of a file)."""
    name: str
    """In outputs."""
    out: Path | None = None
    """File or folder of its own; None: the command's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `SlideOptions`, which a manifest states."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other columns of the manifest."""

    @property
    def path(self) -> Path:
        """The slide's path."""
        return Path(self.slide)

    @property
    def is_remote(self) -> bool:
        """Whether the slide has an address instead of a path."""
        return REMOTE in self.slide

    def settle(self, options: SlideOptions) -> SlideOptions:
        """The command's options, with what the manifest states for this slide in their place.

        Raises:
            UsageError: for values that cannot be right.
        """
        stated = dict(self.options)
        if "pitch_um" in stated:
            stated.setdefault("overlap", None)
        elif "overlap" in stated:
            stated.setdefault("pitch_um", None)
        return replace(options, name=self.name, **stated)


def find_jobs(given: Sequence[str]) -> list[Job]:
    """All slides of what was given, in a settled order, each once, with names that differ.

    Args:
        given: slides, folders (searched through), patterns such as `slides/*.svs`, manifests, addresses (`s3://...`).

    Raises:
        UsageError: where a pattern or folder holds no slide, or a manifest is not one.
    """
    jobs: list[Job] = []
    for text in given:
        jobs.extend(_expand(text))
    once: dict[tuple[str, Path | None, str], Job] = {}
    for job in jobs:
        once.setdefault((job.slide if job.is_remote else str(job.path.absolute()), job.out, job.name), job)
    return _tell_apart(list(once.values()))


def take_share(jobs: Sequence[Job], share: tuple[int, int]) -> list[Job]:
    """Every n-th job, from the i-th on."""
    return list(jobs[share[0] :: share[1]])


def parse_share(text: str) -> tuple[int, int]:
    """`i/N` with i from 0.

    Raises:
        UsageError: for anything else.
    """
    i, slash, n = text.partition("/")
    if not slash or not i.strip().isdecimal() or not n.strip().isdecimal() or not int(i) < int(n):
        raise UsageError(
            f"--shard {text} asked; it is i/N with i from 0 to N - 1", "The first of four shares is --shard 0/4."
        )
    return int(i), int(n)


def share_of_array(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which share a task of a SLURM job array has; None outside one."""
    words = [environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "COUNT", "MIN", "STEP")]
    if not (words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 1):
        return None
    number, count = int(words[0]), int(words[1])
    first = int(words[2]) if words[2].isdecimal() else 0
    step = int(words[3]) if words[3].isdecimal() and int(words[3]) > 0 else 1
    place = (number - first) // step
    # Of an array such as 1,5,7 nobody says how its numbers are spaced; then every task gets all, and claims part them.
    return (place, count) if (number - first) % step == 0 and 0 <= place < count else None


def _expand(text: str) -> Iterator[Job]:
    path = Path(text)
    if REMOTE in text:
        yield Job(text, _stem(text.rstrip("/").rpartition("/")[2]))
    elif path.is_dir():
        found = list(_walk(path))
        if not found:
            raise UsageError(f"{text}: no slide in this folder", f"Slides end in {' '.join(sorted(SUFFIXES))}.")
        yield from found
    elif path.suffix.lower() in TABLES:
        yield from _read_manifest(path)
    elif not path.exists() and glob.has_magic(text):
        matches = [Path(p) for p in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - it may be absolute
        if not matches:
            raise UsageError(f"{text}: no file matches this pattern", "Quote it, or check the folder.")
        for match in matches:
            yield from _expand(str(match))
    else:
        yield Job(text, _stem(path.name))


def _walk(folder: Path) -> Iterator[Job]:
    """Slides of a folder; a folder that is a slide (DICOM series, image in Zarr) counts as one."""
    if (folder / ".zattrs").exists() or (folder / "zarr.json").exists():
        yield Job(str(folder), folder.name)
        return
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = [p for p in inside if p.is_file()]
    if any(p.suffix.lower() in ("", ".dcm") and _is_dicom(p) for p in files):
        yield Job(str(folder), folder.name)
        files = [p for p in files if p.suffix.lower() not in ("", ".dcm")]
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            yield Job(str(file), _stem(file.name))
    # The folder beside NAME.mrxs holds its data.
    companions = {p.stem for p in files if p.suffix.lower() == ".mrxs"}
    for sub in inside:
        if sub.is_dir() and sub.name not in companions:
            yield from _walk(sub)


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:
        return path.suffix.lower() == ".dcm"


def _stem(name: str) -> str:
    return Path(name).stem


def _read_manifest(path: Path) -> Iterator[Job]:
    hint = "A manifest has a header and a column `slide`; it may have " + ", ".join(COLUMNS[1:]) + " and others."
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a manifest of slides: {error}", hint) from error
    if any("\0" in line for line in lines):
        raise UsageError(f"{path}: cannot be read as a manifest of slides: it holds bytes of zero", hint)
    try:
        rows = list(csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",", strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}: cannot be read as a manifest of slides: {error}", hint) from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    if "slide" not in header:
        shown = ", ".join(header)[:200] or "nothing"
        raise UsageError(f"{path}: no column slide; found {shown}", nearest("slide", header) + "\n" + hint)
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        raise UsageError(f"{path}: two columns are called {twice[0]}", hint)
    n = 0
    for number, row in enumerate(rows[1:], start=2):
        cells = {k: cell.strip() for k, cell in zip(header, row, strict=False) if cell.strip()}
        if not cells:
            continue
        if len(row) > len(header) or "slide" not in cells:
            raise UsageError(f"{path}, line {number}: expected a slide, found {row}"[:400], hint)
        n += 1
        yield _job_of_row(path, number, cells)
    if not n:
        raise UsageError(f"{path}: no slide in this manifest", hint)


def _job_of_row(path: Path, number: int, cells: dict[str, str]) -> Job:
    options: dict[str, Any] = {}
    for name in _NUMBERS:
        if name in cells:
            try:
                options[name] = float(cells[name])
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {name} {cells[name]!r} is no number", "") from error
    for name in _TEXTS:
        if name in cells:
            beside = path.parent / cells[name]
            options[name] = str(beside) if name in _PATHS and beside.exists() else cells[name]
    slide = cells["slide"] if REMOTE in cells["slide"] else str(path.parent / cells["slide"])
    name = cells.get("name") or _stem(Path(cells["slide"]).name)
    if "/" in name or name in (".", ".."):
        raise UsageError(f"{path}, line {number}: {name!r} cannot be the name of a file", "Leave / out.")
    out = path.parent / cells["out"] if "out" in cells else None
    job = Job(slide, name, out, options, {k: v for k, v in cells.items() if k not in COLUMNS})
    try:
        job.settle(SlideOptions())
    except UsageError as error:
        raise UsageError(f"{path}, line {number}: {error.message}", error.hint) from error
    return job


def _tell_apart(jobs: list[Job]) -> list[Job]:
    """Names that differ within each folder of outputs: by the folders above the slides, then by their endings."""
    longest = max((len(job.path.parts) for job in jobs), default=0)
    named = jobs
    for depth in range(1, longest):
        alike = _alike(named)
        spread: dict[tuple[Path | None, str], set[Path]] = {place: set() for place in alike}
        for job in named:
            spread.get(_place(job), set()).add(job.path.parent)
        alike = {place for place in alike if len(spread[place]) > 1}  # others no folder tells apart
        if not alike:
            break
        named = [
            replace(job, name="_".join((*_parents(job, depth), old.name))) if _place(job_now) in alike else job_now
            for job, job_now, old in zip(jobs, named, jobs, strict=True)
        ]
    alike = _alike(named)
    named = [
        replace(job, name=f"{job.name}_{job.path.suffix.removeprefix('.')}") if _place(job) in alike else job
        for job in named
    ]
    if alike := _alike(named):
        out, name = next(iter(alike))
        raise UsageError(
            f"two slides would both be called {name}" + (f" in {out}" if out else ""),
            "Give them names: a manifest with the columns slide,name.",
        )
    return named


def _parents(job: Job, depth: int) -> Iterable[str]:
    return [part for part in job.path.parts[:-1][-depth:] if part not in ("/", "..", ".")]


def _place(job: Job) -> tuple[Path | None, str]:
    """Folder and name: what is written beside a file of its own is called by the name, too."""
    own = job.out is not None and job.out.suffix in (".h5ad", ".zarr", ".zip")
    return job.out.parent if own and job.out is not None else job.out, job.name


def _alike(jobs: Sequence[Job]) -> set[tuple[Path | None, str]]:
    return {place for place, times in Counter(map(_place, jobs)).items() if times > 1}
