"""Expression of chosen genes from the weights of a prediction and the bank that they point into."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import BankError, OutputError
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction, StoredPrediction
from genrag_cli.pipeline.gene_choice import choose_genes, describe_genes
from genrag_cli.pipeline.stored import read_stored, read_stored_about
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.pipeline.write import write_expression
from genrag_cli.stores.atomic import tidy
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Listener, PixelSize, TileGrid, fingerprint
from genrag_cli.units import Microns, Mpp, TilePx

_WRITTEN = (
    keys.ARRAY_ROW, keys.ARRAY_COL, keys.IN_TISSUE, keys.LIBRARY, keys.N_REFS, keys.WEIGHT_SUM, keys.GAP, keys.PASSES,
    keys.STATUS,
)  # fmt: skip
"""Columns of obs that every prediction gets from its grid and codes."""


def open_bank_of(stored: StoredPrediction, folder: Path | None) -> tuple[Bank, Tuning | None]:
    """The bank that the weights of a prediction point into, and the settings that it was made with.

    Args:
        stored: the prediction.
        folder: where the bank is now; None: where it was.

    Raises:
        BankError: where the bank is gone, or is another.
    """
    about = stored.about
    name = json.loads(about["backbone"])["name"]
    bank = Bank.open(folder or Path(about["bank"]), name, version=int(about["bank_version"]))
    remedy = "Give the bank that the prediction was made from with --bank."
    if bank.fingerprint != about["bank_fingerprint"]:
        raise BankError(f"the weights of {stored.path} point into another bank than {bank.folder}", remedy)
    number = int(about.get("tuning", 0))
    tuning = Tuning.read(bank, number) if number else None
    if tuning is not None and tuning.key != about["tuning_key"]:
        raise BankError(f"{stored.path} was made with other tuned settings than {bank.folder} has", remedy)
    return bank, tuning


def export_expression(
    path: Path, out: Path | None, genes: str, bank_folder: Path | None, *, overwrite: bool, listener: Listener,
    dry_run: bool = False,
) -> Path:  # fmt: skip
    """`generag export`.

    Args:
        path: a prediction of `generag retrieve`, with expression or without.
        out: file to write; None: beside the prediction, `NAME.expression.h5ad`.
        genes: `all`, a number, names or a file of names.
        bank_folder: where the bank is now; None: where it was.
        overwrite: replace `out`.
        listener: told what happens.
        dry_run: say what would be written, and write nothing.

    Raises:
        BankError: where the bank is gone, or is not the one that the weights point into.
        OutputError: where `out` is there already and is something else.
    """
    stored = read_stored(path)
    about = stored.about
    card = json.loads(about["backbone"])
    bank, tuning = open_bank_of(stored, bank_folder)
    target = out or path.with_name(f"{path.name.removesuffix(path.suffix)}.expression.h5ad")
    if target.resolve() == path.resolve():
        raise OutputError(f"{target} is the prediction itself", "Give another --out.")
    scale = stored.expression.scale
    chosen = choose_genes(bank, genes, scale)
    key = fingerprint(about["key"], chosen)
    if target.exists() and not overwrite:
        if read_stored_about(target).get("key") == key:
            listener.say(f"{target}: already done")
            if not dry_run:
                tidy(target)
            return target
        raise OutputError(f"{target} is there already", "Give another --out, or --overwrite to replace it.")
    if dry_run:
        listener.say(f"would write {target}: {len(stored.names)} spots, {len(chosen)} genes ({scale.name})")
        return target
    meta = stored.spatial["metadata"]
    size = PixelSize(Mpp(float(meta["mpp"])), str(meta["mpp_source"]))
    own = (keys.ARRAY_ROW, keys.ARRAY_COL)
    prediction = Prediction(
        grid=TileGrid(
            slide_id=stored.slide_id,
            names=stored.names,
            centres=stored.centres,
            array_rc=stored.obs[list(own)].to_numpy(np.int64),
            tile_px=TilePx(card["tile_px"]),
            fov_um=Microns(float(about["fov_um"])),
            pitch_um=Microns(float(about["pitch_um"])),
            pixel_size=size,
        ),
        codes=stored.codes,
        bank_spots=stored.bank_spots,
        bank_sections=np.asarray([s["name"] for s in bank.sections], np.str_),
        y_init=stored.y_init,
        genes=bank.genes[chosen],
        scale=scale,
        spot_um=bank.geometry["spot_um"],
        about={k: v for k, v in about.items() if k not in ("unit", "y_init_unit")} | {"key": key},
        obs={k: stored.obs[k] for k in stored.obs.columns if k not in _WRITTEN},
        obsm=stored.obsm,
        bank_patients=stored.bank_patients,
        var=describe_genes(bank, chosen, scale, stored.y_init.genes, tuning),
        thumbnail=_thumbnail(stored.spatial),
    )
    write_expression(target, prediction, bank, chosen, centred=bool(about["centred"]), tuning=tuning, listener=listener)
    listener.say(f"{target}: {len(stored.names)} spots, {len(chosen)} genes ({scale.name})")
    return target


def _thumbnail(spatial: dict[str, Any]) -> tuple[Any, float] | None:
    """RGB and its px per level-0 px; None where the prediction was made without a slide."""
    if "images" not in spatial:
        return None
    return spatial["images"]["hires"], float(spatial["scalefactors"]["tissue_hires_scalef"])
