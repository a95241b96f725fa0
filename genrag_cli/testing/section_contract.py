"""What every reader of measured sections must keep to; subclass it to test a reader of your own.

    class TestMyReader(SectionContract):
        def make_section(self, folder):
            return my_reader(write_a_small_example(folder))

Knows `Section` and `Measured` only, and compares no values with a source: that the right numbers are read is for the
reader's own tests.
"""

import pickle
from pathlib import Path

import numpy as np

from genrag_cli.cohorts.base import Section
from genrag_cli.types import fingerprint


class SectionContract:
    """Tests that hold for every section that a reader gives."""

    def make_section(self, folder: Path) -> Section:
        """A section with two or more spots whose files lie in `folder`, an empty folder of its own."""
        raise NotImplementedError("override `make_section` with one that returns a section whose files it has written")

    def test_spots_and_genes_have_unique_names(self, tmp_path: Path) -> None:
        """Everything later is joined by name."""
        measured = self.make_section(tmp_path).load()
        assert len(set(measured.names.tolist())) == len(measured) > 0
        assert len(set(measured.genes.tolist())) == len(measured.genes) > 0
        assert all(measured.names.tolist())

    def test_counts_are_canonical_csr_of_raw_counts(self, tmp_path: Path) -> None:
        """Sorted, without duplicates or stored zeros, int32 or float32, nothing below 0."""
        counts = self.make_section(tmp_path).load().counts
        assert counts.format == "csr"
        assert counts.dtype in (np.dtype(np.int32), np.dtype(np.float32))
        assert counts.has_canonical_format
        assert np.all(counts.data > 0)

    def test_totals_are_the_sums_over_all_genes(self, tmp_path: Path) -> None:
        """`load` gives all genes, so the row sums are the library sizes."""
        measured = self.make_section(tmp_path).load()
        assert measured.total_counts.dtype == np.float64
        np.testing.assert_allclose(measured.total_counts, np.asarray(measured.counts.sum(axis=1)).ravel(), rtol=1e-6)

    def test_gene_names_are_those_of_the_counts(self, tmp_path: Path) -> None:
        """The cheap way to the names gives the names of the columns."""
        section = self.make_section(tmp_path)
        cheap, full = section.read_genes(), section.load().gene_names
        assert cheap.names.tolist() == full.names.tolist()
        assert (cheap.ids is None) == (full.ids is None)
        assert cheap.ids is None or full.ids is None or cheap.ids.tolist() == full.ids.tolist()

    def test_the_files_that_it_reads_are_there(self, tmp_path: Path) -> None:
        """Their content decides whether a section has changed since a bank was built."""
        files = self.make_section(tmp_path).reader.files()
        assert files
        assert all(file.is_file() for file in files)

    def test_spots_have_a_place_and_a_distance(self, tmp_path: Path) -> None:
        """Centres are finite, x before y, and neighbours lie apart."""
        measured = self.make_section(tmp_path).load()
        assert measured.centres.dtype == np.float64
        assert np.all(np.isfinite(measured.centres))
        assert measured.pitch_px > 0
        assert measured.array_rc.dtype == np.int64

    def test_loading_twice_gives_the_same(self, tmp_path: Path) -> None:
        """A bank is built from what `load` gives, and its fingerprint must not depend on when."""
        section = self.make_section(tmp_path)
        first, second = section.load(), section.load()
        assert fingerprint(first.names, first.centres) == fingerprint(second.names, second.centres)
        assert (first.counts != second.counts).nnz == 0

    def test_a_section_can_be_sent_and_hashed(self, tmp_path: Path) -> None:
        """Workers get sections by pickle; fingerprints take their fields."""
        section = self.make_section(tmp_path)
        assert pickle.loads(pickle.dumps(section)) == section
        assert fingerprint(section) == fingerprint(self.make_section(tmp_path))

    def test_what_is_stated_is_usable(self, tmp_path: Path) -> None:
        """Files exist, lengths are positive, and an unknown patient is None, not an empty name."""
        section = self.make_section(tmp_path)
        lengths = [section.spot_pitch_um, section.spot_diameter_um, section.mpp_given]
        lengths += [value for _, value in section.pixel_size_candidates]
        assert section.counts.exists()
        assert section.slide is None or section.slide.exists()
        assert section.patches is None or section.patches.is_file()
        assert section.patient is None or section.patient.strip()
        assert all(length is None or length > 0 for length in lengths)
