"""The command line: parses, calls the pipeline, prints. The only home of typer and rich."""
