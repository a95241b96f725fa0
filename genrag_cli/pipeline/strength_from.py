"""The strength of an earlier prediction, taken over for another slide."""

import json
from pathlib import Path

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.options import SolveOptions
from genrag_cli.pipeline.stored import read_stored_about
from genrag_cli.retrieval.strength import StrengthRule


def strength_of(path: Path, options: SolveOptions, *, backbone: str, first_guess_from_file: bool) -> StrengthRule:
    """The strength of an earlier prediction, for another slide or a rerun in the same space.

    Args:
        path: the prediction.
        options: of now.
        backbone: by name.
        first_guess_from_file: whether a file gives the first guess (and the anchors) now.

    Raises:
        OutputError: where the file is no prediction.
        UsageError: where it was made in another space, so that its strength means something else.
    """
    about = read_stored_about(path)
    asked = {"preset": options.preset, "omega": options.weight, "signed": options.signed, "backbone": backbone}
    card = json.loads(str(about.get("backbone", "{}")))
    there = {**about, "backbone": card.get("name"), "guess from a file": about.get("first_guess") == "file"}
    asked["guess from a file"] = first_guess_from_file
    if int(about.get("tuning", 0)):
        raise UsageError(
            f"--strength-from {path}: made with tuned settings, of which the strength is a part",
            "Leave --strength-from out: the bank's tuned settings are used for every slide.",
        )
    wrong = [f"{k} {there.get(k)} there, {v} here" for k, v in asked.items() if there.get(k) != v]
    if wrong or "l1_scale" not in about:
        raise UsageError(
            f"--strength-from {path}: made in another space ({', '.join(wrong) or 'no strength is recorded'})",
            "Give the same --preset, --omega, --signed, --backbone and first guess, or leave --strength-from out.",
        )
    return StrengthRule(float(about["l1_scale"]), float(about["l2_scale"]), float(about["l1_power"]))
