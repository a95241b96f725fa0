"""Codes and bank -> expression -> a file that appears when it is whole, block of rows by block of rows."""

from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli import stopping
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction, write_prediction
from genrag_cli.pipeline.query_space import bank_blocks
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.reconstruction import Presence, reconstruct
from genrag_cli.stores.atomic import new_file, new_folder
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.seal import MARK
from genrag_cli.stores.zipped import settled
from genrag_cli.types import Ints, Listener, Progress


def write_expression(
    target: Path, prediction: Prediction, bank: Bank, chosen: Ints, *, centred: bool, tuning: Tuning | None = None,
    threads: int = 1, listener: Listener,
) -> None:  # fmt: skip
    """Reconstructs the chosen genes block by block into a file that appears when it is whole; says what is missing."""
    scale = prediction.scale
    mean = bank.derived[f"genes/{scale.name}/mean"][chosen]
    section_of = np.repeat(np.arange(len(bank.sections)), [section["n_spots"] for section in bank.sections])
    presence = Presence.of(bank.measured[:, chosen], section_of, mean)
    walk, centre = bank_blocks(bank, chosen, scale), mean if centred else None
    blend = None if tuning is None else tuning.blend(prediction.obsm[keys.COMPONENTS], bank, chosen)
    blocks = reconstruct(prediction.codes, walk, len(chosen), centre, presence, blend, threads)
    total, n_missing = len(prediction.grid), 0

    def watched() -> Any:
        nonlocal n_missing
        done = 0
        for values, present in blocks:
            stopping.check()
            done += len(values)
            n_missing += 0 if present is None else int(present.size - present.sum())
            yield values, present
            listener.progress(Progress(f"write {target.name}", done, total))

    making = new_folder if target.suffix == ".zarr" else new_file
    with making(target, sealed=True) as temporary, settled():
        write_prediction(temporary, prediction, watched(), as_h5ad=target.suffix == ".h5ad", mark=MARK)
    if presence is not None:
        listener.say(
            f"{target}: {len(presence.columns)} of {len(chosen)} genes were not measured in every section of the bank; "
            f"{n_missing} of {total * len(chosen)} values are missing (layers['{keys.PRESENT}'])"
        )
