"""Files of other tools, read in the process that decodes slides: a damaged one takes that process down, nothing else.

HDF5 can hang in a loop of its own for a few bytes that are wrong, and hears of no signal there; the process has limits
of time and memory, see `slides.decoder`. Knows which function is called and what its failure is; knows no format.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from genrag_cli.errors import GeneragError, SlideError
from genrag_cli.slides.decoder import Decoder

P = ParamSpec("P")
R = TypeVar("R")


def read_apart(
    source: str | Path, refuse: type[GeneragError], function: Callable[P, R], *arguments: P.args, **named: P.kwargs
) -> R:
    """What a function of this package reads.

    Args:
        source: what is read, for messages.
        refuse: raised where the process dies, hangs, or needs too much memory, built with (message, hint).
        function: at the top of its module.
        arguments: of the function.
        named: of the function.

    Raises:
        refuse: see there.
        GeneragError: what the function raises.
        Stopped: where that was asked for.
    """
    decoder = Decoder.take()
    try:
        result: R = decoder.ask(path := Path(source), "apply", path, Path.cwd(), function, arguments, named)
    except SlideError as error:
        decoder.kill()
        raise refuse(error.message, error.hint) from error
    except GeneragError:
        if decoder.alive:
            decoder.give_back()
        raise
    except BaseException:
        decoder.kill()
        raise
    decoder.give_back()
    return result
