"""What is said about one slide of a batch, passed on and kept."""

from typing import Any

from genrag_cli.types import Listener, Progress


class SlideListener(Listener):
    """Passes on what is said, and keeps warnings and seconds for the slide's status.

    Args:
        base: who shows it.
        name: of the slide.
    """

    def __init__(self, base: Listener, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Passes on a line."""
        self.base.say(text)

    def warn(self, text: str) -> None:
        """Passes on a warning, and keeps it."""
        self.warnings.append(text)
        self.base.warn(text)

    def progress(self, step: Progress) -> None:
        """Passes on how far a stage is."""
        self.base.progress(step)

    def event(self, name: str, /, **facts: Any) -> None:
        """Passes on an event, with the slide that it is about."""
        self.base.event(name, name=self.name, **facts)
