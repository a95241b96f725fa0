"""Settings of a bank from folds within it, and what the same folds say of genes and spots."""
