"""One function per command: stages put in order, no arithmetic of their own."""
