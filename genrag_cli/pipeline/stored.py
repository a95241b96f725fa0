"""Predictions that are read back, once their digests say that they are as they were written.

Nothing of a damaged file is given to the libraries that read HDF5 and Zarr. Knows what a digest means for whoever
reads; does not know what is in a prediction.
"""

from pathlib import Path
from typing import Any

from genrag_cli.errors import OutputError
from genrag_cli.outputs.prediction import StoredPrediction, read_about, read_prediction
from genrag_cli.stores.seal import check


def read_stored(path: Path) -> StoredPrediction:
    """A prediction of `generag retrieve`.

    Raises:
        OutputError: where the file is missing, not as it was written, or no prediction.
    """
    expect_whole(path)
    return read_prediction(path)


def read_stored_about(path: Path) -> dict[str, Any]:
    """Its provenance alone.

    Raises:
        OutputError: as `read_stored`.
    """
    expect_whole(path)
    return read_about(path)


def expect_whole(path: Path) -> None:
    """Refuses a prediction that is damaged.

    One that another program has written anew (anndata, to add a column) has no digest any more, and is taken as it is.

    Raises:
        OutputError: where its bytes are not those that were written.
    """
    found = check(path)
    edited = found.state == "changed" and (path.is_dir() or not found.sha256)
    if path.exists() and found.state in ("damaged", "changed") and not edited:
        raise OutputError(f"{path}: {found.reason}", "Copy it again, or make it again with --overwrite.")
