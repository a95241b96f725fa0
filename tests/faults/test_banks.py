"""A section whose image takes its reader down while a bank is built: the others are in it, and it has its reason."""

import json

import pytest

VICTIM = "P2_1"


@pytest.mark.parametrize("at", ["open", "tiles"])
@pytest.mark.parametrize(
    ("how", "words"), [("raise", "made-up fault"), ("segfault", "the process that read it died (SIGSEGV)")]
)
def test_a_section_that_cannot_be_read_is_left_out_and_joins_later(made, generag, tmp_path, inject, at, how, words):
    bank = tmp_path / "bank.zarr"
    build = ("build-bank", made / "cohort", "--patients", "prefix", "--bank", bank, "--backbone", "stain", "-q")
    inject(slide=f"{VICTIM}.tif", at=at, how=how)
    ran = generag(*build, "--workers", "1", "--skip-bad")
    assert ran.code == 3, ran.err
    assert words in ran.err
    assert VICTIM in ran.err
    assert embedded(bank) == {"P1_1", "P3_1"}
    inject()
    ran = generag(*build, "--workers", "1")
    assert ran.code == 0, ran.err
    assert embedded(bank) == {"P1_1", "P2_1", "P3_1"}


def embedded(bank):
    """Sections with embeddings."""
    return set(json.loads((bank / "manifest.json").read_text())["backbones"]["stain"]["sections"])
