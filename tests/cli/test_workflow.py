"""`generag workflow`: texts for Snakemake and Nextflow. Snakemake runs one in tests/cluster."""

import ast
import re

import pytest

LINE = ("retrieve", "slides", "--out", "it's {out}", "--bank", "my $b.zarr", "--genes", 'A"B')
QUOTED = """--bank 'my $b.zarr' --out 'it'"'"'s {out}' --genes 'A"B'"""


@pytest.fixture
def write(generag, tmp_path, monkeypatch):
    """`write(manager, *options, line=...)` in a folder with three slides; returns what the command did."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.svs", "b 1.svs", "sub/c.svs"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slides" / name).touch()
    return lambda manager, *options, line=LINE: generag("workflow", manager, *options, "--", *line)


def find(pattern, text):
    return re.search(pattern, text, re.DOTALL).group(1)


def read_rule(text):
    """Slides, and the literals of the rule, as Python reads them."""
    rule = text[text.rindex("\nrule ") :]
    literal = {
        part: ast.literal_eval(find(rf'\n    {part}:\n        (".*?"),?\n', rule + "\n"))
        for part in ("output", "log", "shell")
    }
    return ast.literal_eval(find(r"SLIDES = (\{.*?\n\})", text)), literal


def test_a_snakefile_has_a_job_for_every_slide(write):
    slides, rule = read_rule(write("snakemake").out)
    assert slides == {
        "a": ("slides/a.svs", "slides/a.svs"),
        "b 1": ("slides/b 1.svs", "'slides/b 1.svs'"),
        "c": ("slides/sub/c.svs", "slides/sub/c.svs"),
    }
    assert rule["output"].format(slide="a") == "it's {out}/a.lite0.h5ad"
    assert rule["log"].format(slide="a") == "it's {out}/logs/a.lite0.h5ad.log"


def test_a_snakefile_says_the_command_line_as_it_was(write):
    _, rule = read_rule(write("snakemake").out)
    told = rule["shell"].replace(":q}", "}").replace("{params.slide}", "SLIDE").format(threads=4, log="LOG")
    assert told == f"generag retrieve SLIDE {QUOTED} --workers 4 2> LOG"
    _, rule = read_rule(write("snakemake", line=(*LINE, "--workers", "9")).out)
    assert "{threads}" not in rule["shell"]


def test_a_snakefile_watches_the_bank_and_asks_for_what_was_asked(write):
    text = write("snakemake", "--cpus", "2", "--mem", "3", "--time", "1-00:00:30", "--gpus", "1", "--retries", "5").out
    for line in ('"my $b.zarr/manifest.json",', "threads: 2", "retries: 5", "mem_mb=3000,", "runtime=1441,", "gpu=1,"):
        assert f"    {line}\n" in text
    assert "manifest.json" not in write("snakemake", line=("embed", *LINE[1:6])).out


def test_embeddings_are_outputs_too(write):
    _, rule = read_rule(write("snakemake", line=("embed", "slides", "--backbone", "timm:x")).out)
    assert rule["output"] == "{slide}.timm-x.zarr.zip"


def test_a_variable_that_names_the_bank_is_written_out(write, monkeypatch):
    monkeypatch.setenv("GENERAG_BANK", "other.zarr")
    text = write("snakemake", line=("retrieve", "slides", "--out", "o")).out
    assert '"other.zarr/manifest.json"' in text
    assert "--bank other.zarr" in text


def test_rows_of_a_manifest_are_shares_of_it(write, tmp_path):
    (tmp_path / "m.csv").write_text("slide,name,mpp\nslides/a.svs,first,0.5\nslides/b 1.svs,second,0.25\n")
    slides, rule = read_rule(write("snakemake", line=("retrieve", "m.csv", "--out", "o")).out)
    assert slides == {
        "first": ("slides/a.svs", "m.csv --shard 0/2"),
        "second": ("slides/b 1.svs", "m.csv --shard 1/2"),
    }
    assert rule["output"] == "o/{slide}.lite0.h5ad"


def test_a_nextflow_script_has_a_task_for_every_slide(write):
    text = write("nextflow").out
    assert find(r"def slides = \[\n(.*?)\n    \]", text).splitlines() == [
        "        ['a', 'slides/a.svs', 'a.lite0.h5ad'],",
        "        ['b 1', '\\'slides/b 1.svs\\'', 'b 1.lite0.h5ad'],",
        "        ['c', 'slides/sub/c.svs', 'c.lite0.h5ad']",
    ]
    assert text.count("{") == text.count("}")


def test_a_nextflow_script_says_the_command_line_as_groovy_reads_it(write):
    script = find(r'"""(.*?)"""', write("nextflow").out)
    read = script.replace("${slide}", "SLIDE").replace("${task.cpus}", "4")
    for escaped, plain in (("\\$", "$"), ('\\"', '"'), ("\\\\", "\\")):
        read = read.replace(escaped, plain)
    assert f"    generag retrieve SLIDE {QUOTED} --workers 4\n" in read


def test_a_nextflow_script_asks_for_what_was_asked_and_tries_stopped_slides_again(write):
    text = write("nextflow", "--cpus", "2", "--mem", "3", "--time", "01:30:00", "--gpus", "1", "--retries", "5").out
    for line in ("cpus 2", "memory '3 GB'", "time '90 min'", "accelerator 1", "maxRetries 5"):
        assert f"    {line}\n" in text
    assert "task.exitStatus == 75 || task.exitStatus > 128 ? 'retry' : 'ignore'" in text


@pytest.mark.parametrize("manager", ["snakemake", "nextflow"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("tune",), "does not work on slide after slide"),
        (("retrieve", "slides", "--out", "p.h5ad"), "there is a job for every slide"),
        (("retrieve", "empty"), "no slide in this folder"),
        (("retrieve", "slides/a.svs", "more/a.svs"), "would be named otherwise"),
        (("retrieve", "own.csv"), "an output of its own"),
    ],
)
def test_what_cannot_be_a_job_per_slide_is_refused(write, tmp_path, manager, line, said):
    for folder in ("more", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "more" / "a.svs").touch()
    (tmp_path / "own.csv").write_text("slide,out\nslides/a.svs,elsewhere\n")
    write(manager, line=line).expect_refusal(2, said)


def test_a_file_is_written_and_how_to_start_it_is_said(write, tmp_path):
    assert "snakemake --cores all --keep-going --snakefile w.smk" in write("snakemake", "--out-file", "w.smk").err
    assert "nextflow run w.nf" in write("nextflow", "--out-file", "w.nf").err
    assert (tmp_path / "w.smk").read_text() == write("snakemake").out
