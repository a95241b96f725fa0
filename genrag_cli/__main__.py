"""`python -m genrag_cli` and the console script."""

import os
import sys

STOPPED = 75
INTERRUPTED = 130
"""What typer makes of Ctrl-C before a command of ours has begun."""


def main() -> None:
    """Runs the command line; Ctrl-C before a command has begun ends without a traceback."""
    try:
        from genrag_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as done:
        if done.code in (STOPPED, INTERRUPTED):
            _leave()
        raise


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
