"""Real problems, made once for all tests: the shared tool takes seconds for each."""

import functools
import importlib.util

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def real_problem(shared_data):
    """From a variant (std, raw, l2) to a dictionary (m, 1500) and 64 queries (m, 64)."""
    path = shared_data.parent / "tools" / "solver_problems.py"
    spec = importlib.util.spec_from_file_location("solver_problems", path)
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)

    @functools.cache
    def make(variant):
        dictionary, queries = tools.problem(1500, variant, data=shared_data / "solver" / "her2st_counts_top1000.h5ad")
        return dictionary, np.ascontiguousarray(queries[:, :64])

    return make


@pytest.fixture
def every_warning():
    """Torch says some things once in a process: here, every time."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
