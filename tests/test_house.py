"""The house itself: layers, style, types, what the top level holds, completions, and the README's promises."""

import functools
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TOP_LEVEL = {"genrag_cli", "tests", "completions", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
COMMANDS = {
    "build-bank",
    "tune",
    "inspect",
    "embed",
    "retrieve",
    "evaluate",
    "export",
    "explain",
    "plot",
    "demo",
    "doctor",
    "status",
    "verify",
    "slurm",
    "workflow",
    "backbones",
    "bank",
    "cohort",
}
SHELLS = ("bash", "zsh", "fish")


def run(*command, cwd=None, **env):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **env})


def tool(name):
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "genrag_cli", "tests"),
        ("ruff", "format", "--check", "genrag_cli", "tests"),
        ("mypy",),
        ("lint-imports", "--no-cache"),
    ],
    ids=lambda c: "-".join(c[:2]),
)
def test_checks_are_clean(root, command):
    result = run(tool(command[0]), *command[1:], cwd=root)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_top_level_holds_what_it_should(root):
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    tracked = run("git", "ls-files", cwd=root).stdout.splitlines()
    names = {path.split("/")[0] for path in tracked}
    assert {n for n in names if not n.startswith(".")} == TOP_LEVEL


def test_no_file_is_longer_than_400_lines(root):
    long = {p.name: n for p in root.glob("genrag_cli/**/*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_retrieval_imports_with_torch_and_numpy_alone(root):
    banned = ["zarr", "anndata", "openslide", "tifffile", "pandas", "scipy", "h5py", "typer", "rich", "timm", "PIL"]
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r})); import genrag_cli.retrieval"
    result = run(sys.executable, "-W", "ignore", "-c", code, cwd=root)
    assert result.returncode == 0, result.stderr


def test_the_package_imports_without_torch():
    result = run(sys.executable, "-c", "import sys, genrag_cli; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_are_the_ones_that_the_tool_generates(root, shell):
    from typer.completion import get_completion_script

    script = get_completion_script(prog_name="generag", complete_var="_GENERAG_COMPLETE", shell=shell)
    stored = (root / "completions" / f"generag.{shell}").read_text()
    assert stored == script + "\n", "regenerate it with typer.completion.get_completion_script"


def test_bash_completes_every_command(root):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = f"source {root}/completions/generag.bash; COMP_WORDS=(generag ''); COMP_CWORD=1; "
    script += "_generag_completion generag; printf '%s\\n' \"${COMPREPLY[@]}\""
    found = run("bash", "-c", script, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert set(found.stdout.split()) == COMMANDS, found.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command):
    result = run(sys.executable, "-m", "genrag_cli", command, "--help", COLUMNS="200", TERM="dumb")
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_the_readme_names_every_command_and_option_that_it_shows(root):
    readme = (root / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", readme, re.DOTALL))

    @functools.cache
    def show_help(*command):
        return run(sys.executable, "-m", "genrag_cli", *command, "--help", COLUMNS="300", TERM="dumb").stdout

    for line in re.findall(r"^generag .*", blocks, re.MULTILINE):
        own, _, carried = line.split("#")[0].partition(" -- ")  # a command line that one writes out
        for words in filter(None, (own.removeprefix("generag").split(), carried.split())):
            shown = show_help(*words[: 2 if words[0] in ("backbones", "bank", "cohort") else 1])
            for option in (w.split("=")[0] for w in words if w.startswith("--")):
                assert option in shown, line
    assert {c for c in COMMANDS if f"generag {c}" in readme} == COMMANDS


def test_ci_runs_exactly_the_readmes_test_command(root):
    line = "pip install '.[test]' && pytest"
    assert line in (root / "README.md").read_text()
    assert line in (root / ".ci" / "run").read_text()


def test_backbones_are_found_by_entry_point():
    assert {"lite0", "stain"} <= set(entry_points(group="generag.backbones").names)
