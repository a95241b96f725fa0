"""Honest scores of a bank: folds held out, everything chosen anew without them, baselines in the same folds."""
