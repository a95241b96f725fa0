"""Whether a bank's tuned settings are used for what was asked."""

from genrag_cli.pipeline.options import SolveOptions
from genrag_cli.pipeline.tuning.settings import describe
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.tunings import list_tunings
from genrag_cli.types import Listener


def choose_tuning(
    bank: Bank, options: SolveOptions, *, guessed: bool, untuned: bool = False, listener: Listener
) -> Tuning | None:
    """The bank's tuned settings, or None and why not.

    Args:
        bank: opened.
        options: what was asked of the problem; anything named there takes the place of all tuned settings.
        guessed: whether a model or a file makes the first guess, for which nothing was tuned.
        untuned: leave them aside on request.
        listener: told what is used.
    """
    if untuned:  # before they are read: damaged settings can be left aside too
        if list_tunings(bank):
            listener.say("tuned settings are not used: --untuned was given")
        return None
    found = Tuning.read(bank)
    if found is None:
        if options.preset == "default" and not options.named:
            listener.say(
                f"{bank.folder} is not tuned: omega {options.weight:g} and {options.wanted_references} references are "
                f"nobody's choice (generag tune {bank.folder} --backbone {bank.backbone})"
            )
        return None
    why = ""
    if options.preset != "default":
        why = f"they are for preset default, {options.preset} was asked"
    elif options.named:
        why = f"{', '.join(options.named)} was given"
    elif guessed:
        why = "they are for first guesses of the bank's own"
    if why:
        listener.say(f"tuned settings are not used: {why}")
        return None
    listener.say(f"tuned settings ({found.about['rule']}): {describe(found.settings)}")
    return found
