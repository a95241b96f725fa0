import pytest

from genrag_cli.cohorts import open_cohort
from genrag_cli.testing.section_contract import SectionContract


class TestLegacySections(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, write_legacy):
        self.write = write_legacy

    def make_section(self, folder):
        return open_cohort(self.write(folder)).sections[0]


class TestHestSections(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, write_hest):
        self.write = write_hest

    def make_section(self, folder):
        return open_cohort(self.write(folder, dense=True, metadata={"st_technology": "Visium HD"})).sections[0]
