"""The plug-in that the README shows, installed and tested exactly as it stands there."""

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from genrag_cli.backbones.registry import package_of, read_sheet
from genrag_cli.testing.backbone_contract import BackboneContract

MOST_LINES = 40


@pytest.fixture
def files(root: Path) -> dict[str, str]:
    """The three files, by name: each block stands behind the first mention of the file that it is."""
    text = (root / "README.md").read_text()
    heading = "### A backbone of your own\n"
    assert heading in text, "the README has no such heading"
    section = re.split(r"^#+ ", text.split(heading)[1], maxsplit=1, flags=re.MULTILINE)[0]
    shown = re.findall(r"`(\w+\.(?:toml|py))`[^`]*```(?:toml|python)\n(.*?)```", section, re.DOTALL)
    assert [name for name, _ in shown] == ["pyproject.toml", "my_encoder.py", "test_my_encoder.py"]
    return dict(shown)


@pytest.fixture
def installed(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds them as `pip install` would leave them."""
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in named.items())
             for group, named in project["entry-points"].items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_encoder", "test_my_encoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


class Outcomes:
    """A plug-in of pytest that keeps what became of each test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.others: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Told of setup, call and teardown."""
        if report.outcome != "passed":
            self.others.append(f"{report.nodeid} {report.when} {report.outcome}\n{report.longreprtext}")
        elif report.when == "call":
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Told of files that cannot be imported."""
        if report.failed:
            self.others.append(report.longreprtext)


def test_it_is_short(files: dict[str, str]) -> None:
    assert sum(len(content.splitlines()) for content in files.values()) <= MOST_LINES


def test_it_keeps_the_contract_and_its_own_test_says_so(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    found = Outcomes()
    options = ("-W", "error", "-p", "no:cacheprovider", "-p", "no:terminal", "-s", "--rootdir", str(installed))
    code = pytest.main([*options, "-c", os.devnull, str(installed / "test_my_encoder.py")], plugins=[found])
    assert found.others == []
    assert code == 0
    contract = [name for name in vars(BackboneContract) if name.startswith("test_")]
    assert {name.split("::")[-1].split("[")[0] for name in found.passed} == set(contract)


def test_it_is_found_with_its_sheet_and_its_package(installed: Path) -> None:
    sheet = read_sheet("my-encoder")
    assert sheet is not None
    assert (sheet.name, sheet.dim, sheet.feature) == ("my-encoder", 192, "CLS token after the final norm")
    assert package_of("my-encoder") == "package my-encoder 1.0"
