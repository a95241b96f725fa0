"""`python -m genrag_cli` and the console script."""

import gc
import os
import signal
import sys
from typing import Any

STOPPED = 75
INTERRUPTED = 130
"""What typer makes of Ctrl-C before a command of ours has begun."""


SPINS = "10000"
"""How long a thread of libgomp, which torch computes with, turns in place before it sleeps until there is work.

By default it is 30 times as long, and where anything else needs the core, such as the threads that read tiles or
another program, all of torch waits for a thread that has no core while the others turn in vain. Measured on two cores:
`lite0` alone as fast, beside reading 10 % faster, beside another busy program twice as fast; the solver no slower.
"""


COLLECT_AT = (10_000, 10, 10)
"""How often Python looks for cycles of objects, after so many new ones instead of 700.

There is nothing to find while torch and anndata are imported, nor at the end; `tests/benchmarks/start.py` times both.
"""


def main() -> None:
    """Runs the command line; Ctrl-C, SIGTERM or SIGUSR1 before a command has begun end as they do later."""
    wait_briefly()
    gc.set_threshold(*COLLECT_AT)
    _hear_stops(signal.default_int_handler)
    try:
        from genrag_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as done:
        _hear_stops(signal.SIG_IGN)  # all is done: Python would die of them while it leaves, whatever the exit code is
        if done.code in (STOPPED, INTERRUPTED):
            _leave()
        raise
    finally:
        gc.freeze()  # what is still there ends with the process; nobody needs to look at all of it once more


def wait_briefly() -> None:
    """Sets `SPINS`, unless the environment says how threads wait; to be called before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _hear_stops(handler: Any) -> None:
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _leave() -> None:
    """Ends now with exit code 75.

    Python dies of SIGINT at its exit, whatever the exit code is, where Ctrl-C once struck within `exec`, as imports
    use it; and it would wait for threads.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(STOPPED)


if __name__ == "__main__":
    main()
