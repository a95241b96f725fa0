"""What a folder of outputs holds: digests to compare by, files that are not whole, and what unfinished work leaves.

Knows what generag writes. Runs nothing.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.outputs.prediction import read_prediction
from genrag_cli.stores.bank import Bank, read_manifest
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.embeddings import read_embeddings
from genrag_cli.types import fingerprint

GAP_DIGITS = 9
MAY_STAY = {".writer.lock"}
OF_A_RUN = (
    "slide",
    "seconds",
    "began",
    "ended",
    "worker",
    "attempts",
    "peak_memory",
    "warnings",
    "size",
    "sha256",
    "facts",
)
"""What a status says of the run and its place; sizes hang on the command line that is in the output."""


def find_halves(out: Path) -> list[str]:
    """Files under final names that are not whole."""
    wrong = []
    for path in _final(out):
        try:
            if path.suffix == ".h5ad" or (path / "zarr.json").exists():
                read_prediction(path)
            elif path.name == "manifest.json":
                wrong += [w for w in verify_bank(path.parent) if "not finished" not in w and "changed after" not in w]
                _expect_whole_or_refused(path.parent)
            elif path.name.endswith(".zarr.zip"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
                if path.parent == out:
                    read_embeddings(path)
            elif path.suffix in (".json", ".geojson"):
                json.loads(path.read_text())
            elif path.suffix == ".png":
                assert path.read_bytes()[-8:-4] == b"IEND"
            else:
                wrong.append(f"{path}: nobody knows this file")
        except Exception as error:  # whatever it is: the file is not what its name says
            wrong.append(f"{path}: {type(error).__name__}: {error}")
    return wrong


def read_content(out: Path) -> dict[str, str]:
    """Digest of every output by name; what names the trial's own folder is left out, and what says when it was run."""
    content = {}
    for path in _final(out):
        if path.parent.name != "runs":
            content |= read_output(path, str(path.relative_to(out)))
    return content


def read_output(path: Path, name: str) -> dict[str, str]:
    """Digests of an output's parts by name; see `read_content`."""
    if path.suffix in (".h5ad", ".zarr"):
        adata = anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
        about = adata.uns["generag"]
        about.pop("argv")
        # The run that compiles the solver and those that find it compiled differ in the last bits of duality gaps.
        adata.obs["generag_gap"] = adata.obs["generag_gap"].round(GAP_DIGITS)
        about["gap_worst"] = round(float(about["gap_worst"]), GAP_DIGITS)
        parts = {"X": adata.X, **adata.obsm, **adata.uns}
        for frame in ("obs", "var"):
            table = getattr(adata, frame)
            parts |= {frame: list(table.index), **{f"{frame}/{c}": table[c].to_numpy() for c in table}}
        return {f"{name}/{key}": fingerprint(_plain(value)) for key, value in parts.items()}
    if path.name == "manifest.json":
        manifest = read_manifest(path.parent)
        for section in manifest["sections"]:
            section.pop("files")  # when the trial's own copy of the cohort was written
        return {f"{name}/{key}": json.dumps(value) for key, value in manifest.items()}
    if path.name.endswith(".status.json"):
        status = json.loads(path.read_text())
        return {f"{name}/{key}": json.dumps(value) for key, value in status.items() if key not in OF_A_RUN}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()}


def find_leftovers(out: Path) -> list[str]:
    """Hidden files and folders, which hold unfinished work."""
    return sorted(str(p.relative_to(out)) for p in out.rglob(".*") if p.name not in MAY_STAY)


def _final(out: Path) -> list[Path]:
    """Everything that stands under a final name; a prediction in Zarr counts as one."""
    found = []
    for path in sorted(out.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not (path / "zarr.json").exists():
            found += _final(path)
        else:
            found.append(path)
    return found


def _expect_whole_or_refused(bank: Path) -> None:
    """A bank either refuses to open, or everything that a retrieval reads fits together."""
    try:
        opened = Bank.open(bank, "stain")
    except GeneragError:
        return
    assert len(opened.spot_names) == sum(map(len, opened.embeddings)) == opened.n_spots
    assert sum(len(totals) for *_, totals in opened.count_blocks()) == opened.n_spots
    assert opened.derived


def _plain(value: Any) -> Any:
    if hasattr(value, "tocsr"):
        return [value.indptr, value.indices, value.data, list(value.shape)]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return value.tolist()
    return list(value) if hasattr(value, "categories") else value
