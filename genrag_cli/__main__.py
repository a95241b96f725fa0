"""`python -m genrag_cli` and the console script."""

from genrag_cli.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
