"""Many slides in one command: from what was given to one result, or one reason, for each."""
