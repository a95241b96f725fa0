"""One task of HEST-bench on disk: `splits/{train,test}_N.csv`, `patches/ID.h5`, `adata/ID.h5ad`, `var_50genes.json`.

The splits say which sections there are and where their files lie. Species, technology and patient come from a table
`HEST_*.csv` in the task's folder or beside it, where there is one; the task itself states none of them. The module
opens no counts and no patches.
"""

import csv
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.hest import Table, complete, describe, read_table
from genrag_cli.cohorts.listing import Listing
from genrag_cli.errors import CohortError

LAYOUT = "a HEST-bench task: splits/train_*.csv, adata/*.h5ad, patches/*.h5"
PANEL = "var_50genes.json"
_SPLIT = re.compile(r"(train|test)_(\d+)\.csv")
_COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclass
class _Listed:
    """A sample as the splits list it."""

    patches: Path
    counts: Path
    roles: dict[str, str] = field(default_factory=dict)
    """`split_0` to `train` or `test`."""


def looks_like(root: Path) -> bool:
    """Whether the folder is a task, or holds tasks and is no HEST-1k folder."""
    return _is_task(root) or (not (root / "st").is_dir() and any(_is_task(folder) for folder in root.iterdir()))


def read_cohort(root: Path, reading: Reading) -> Cohort:  # noqa: ARG001 - the layout leaves no choice
    """Lists the sections of a task in the order of its splits; of counts, only the names of genes are read.

    Raises:
        CohortError: for a folder of several tasks, splits that cannot be read or have a section on both sides, and a
            panel that cannot be read.
    """
    tasks = [root] if _is_task(root) else [folder for folder in sorted(root.iterdir()) if _is_task(folder)]
    if len(tasks) != 1:
        names = ", ".join(task.name for task in tasks)
        raise CohortError(
            f"{root} holds {len(tasks)} tasks of HEST-bench: {names}",
            f"Choose one, such as {tasks[0]}." if tasks else f"Looked for {LAYOUT}.",
        )
    task = tasks[0]
    listed, warnings = _read_splits(task)
    table, said = _read_metadata(task)
    found = Listing()
    for name, sample in listed.items():
        if not sample.counts.is_file():
            found.skip(name, f"no counts: {sample.counts} does not exist")
            continue
        section = _describe(name, sample, table)
        found.add(section, "" if section.patches else f"no patches: {sample.patches} does not exist")
    known = {sample.counts.resolve() for sample in listed.values()}
    apart = [path.name for path in sorted((task / "adata").glob("*.h5ad")) if path.resolve() not in known]
    if apart:
        warnings.append(f"no split lists {', '.join(apart[:5])}{', ...' if len(apart) > 5 else ''}; left out")
    panel = task / PANEL if (task / PANEL).is_file() else None
    warnings += [*said, *(_check_panel(panel, [*found.ready, *found.bare]) if panel else ())]
    return found.cohort(task, "hest-bench", warnings, panel)


def read_one(counts: Path, reading: Reading) -> Section | None:  # noqa: ARG001 - the layout leaves no choice
    """The section of one `adata/ID.h5ad`, whether or not a split lists it."""
    task = counts.parent.parent
    if counts.suffix != ".h5ad" or counts.parent.name != "adata" or not _is_task(task):
        return None
    listed = {sample.counts: (name, sample) for name, sample in _read_splits(task)[0].items()}
    unlisted = (counts.stem, _Listed(task / "patches" / f"{counts.stem}.h5", counts))
    name, sample = listed.get(counts, unlisted)
    return _describe(name, sample, _read_metadata(task)[0])


def _is_task(folder: Path) -> bool:
    return (folder / "adata").is_dir() and any(_split_files(folder))


def _split_files(task: Path) -> list[tuple[int, str, Path]]:
    """(number, train or test, file), in order; train before test."""
    found = ((_SPLIT.fullmatch(path.name), path) for path in (task / "splits").glob("*.csv"))
    return sorted(((int(m[2]), m[1], p) for m, p in found if m), key=lambda f: (f[0], f[1] != "train"))


def _read_splits(task: Path) -> tuple[dict[str, _Listed], list[str]]:
    """The samples of all splits, in order of first mention, and what is to be said about the splits."""
    listed: dict[str, _Listed] = {}
    files = _split_files(task)
    for number, role, path in files:
        for name, patches, counts in _read_split(path):
            sample = listed.setdefault(name, _Listed(task / patches, task / counts))
            if (sample.patches, sample.counts) != (task / patches, task / counts):
                raise CohortError(
                    f"{path}: sample {name!r} has {patches} and {counts}, but {sample.patches} and {sample.counts} "
                    "in another split",
                    "One sample has one file of each; correct the splits.",
                )
            if sample.roles.setdefault(f"split_{number}", role) != role:
                raise CohortError(
                    f"{task / 'splits'}: sample {name!r} is in train_{number}.csv and in test_{number}.csv",
                    "A section that is trained on cannot be tested on; take it out of one of them.",
                )
    numbers = {role: {n for n, r, _ in files if r == role} for role in ("train", "test")}
    halves = sorted(numbers["train"] ^ numbers["test"])
    return listed, [f"split {n} has only one of train_{n}.csv and test_{n}.csv" for n in halves]


def _read_split(path: Path) -> list[tuple[str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            header = reader.fieldnames or []
            if missing := [c for c in _COLUMNS if c not in header]:
                raise CohortError(f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}")
            rows = []
            for row in reader:
                cells = [(row[c] or "").strip() for c in _COLUMNS]
                if not all(cells):
                    raise CohortError(f"{path}, line {reader.line_num}: a row needs {', '.join(_COLUMNS)}")
                rows.append((cells[0], cells[1], cells[2]))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path}: cannot be read as a table ({error})") from error


def _read_metadata(task: Path) -> tuple[Table, list[str]]:
    return read_table([*task.glob("HEST_*.csv"), *task.absolute().parent.glob("HEST_*.csv")])


def _describe(name: str, sample: _Listed, table: Table) -> Section:
    metadata, notes = complete(table, name)
    section = describe(name, sample.counts, metadata | sample.roles, notes)
    return replace(section, patches=sample.patches if sample.patches.is_file() else None)


def _check_panel(path: Path, sections: list[Section]) -> list[str]:
    """Names in the panel that no section has; they cannot be predicted."""
    try:
        panel = json.loads(path.read_text(encoding="utf-8"))["genes"]
        absent = set(map(str, panel))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(f"{path}: not a list of genes ({error!r})", 'Expected {"genes": [...]}.') from error
    for section in sections:
        if not absent:
            break
        genes = section.read_genes()
        absent -= {*genes.names.tolist(), *([] if genes.ids is None else genes.ids.tolist())}
    if not absent or not sections:
        return []
    return [f"{path.name}: {len(absent)} of {len(panel)} genes are in no section, such as {min(absent)}"]
