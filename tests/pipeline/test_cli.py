"""The surface of the command line: subcommands, options, dry runs, and errors of one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from manifests.scenes.write import ScenesConfig, write_scenes
from pipeline import cli as module
from pipeline.inspect import LMMs
from tests.helpers import cli, tree

OPTIONS = {
    "extract": ["--lmm", "--dataset", "--data-root", "--cache", "--images", "--splits", "--limit", "--sentences",
                "--store-grid", "--views", "--context", "--decontaminate", "--merge", "--batch-size", "--dtype",
                "--attention", "--device", "--trust-remote-code", "--sam", "--sam-checkpoint", "--workers",
                "--gpus-per-worker", "--local", "--ray-address", "--unit-deadline", "--dry-run", "--overwrite",
                "--answer", "--no-answer", "--max-answer-tokens"],
    "train-head": ["--cache", "--images", "--out", "--head", "--preset", "--refiner", "--prompt-mask", "--prompt-box",
                   "--prompt-text", "--epochs", "--lr", "--batch-size", "--seed", "--device", "--memory-gb",
                   "--sam-checkpoint"],
    "evaluate": ["--task", "--cache", "--images", "--head", "--out", "--splits", "--lam", "--batch-size", "--data-root",
                 "--device", "--workers", "--similarity", "--captions", "--spacy-model", "--lmm", "--dtype",
                 "--trust-remote-code", "--questions", "--qa-tasks", "--qa-python", "--qa-include", "--qa-limit"],
    "ground": ["--image", "--ask", "--phrase", "--lmm", "--head", "--head-class", "--out", "--lam",
               "--max-answer-tokens", "--own-settings", "--seed", "--refiner", "--no-refiner", "--side", "--device",
               "--gpus", "--sam-checkpoint", "--trust-remote-code", "--overwrite"],
    "demo-page": ["--lmm", "--head", "--head-class", "--sam-checkpoint", "--device", "--gpus", "--trust-remote-code",
                  "--max-answer-tokens", "--host", "--port"],
    "compare": ["--out"],
    "import-head": ["--file", "--cache", "--out"],
    "push-head": ["--head", "--head-class", "--repo", "--evaluation", "--private", "--license", "--dry-run", "--out"],
    "analyze": ["--cache", "--images", "--out", "--split", "--samples", "--data-root", "--clusters", "--pictures",
                "--seed"],
    "ablate": ["--cache", "--images", "--out", "--only", "--seeds", "--epochs", "--device", "--processes", "--merge",
               "--extract", "--sam-checkpoint", "--quick"],
    "manifest": ["--dataset", "--data-root", "--more-roots", "--splits", "--limit", "--sentences", "--context",
                 "--decontaminate", "--lmm", "--file"],
    "cache info": ["--cache"],
    "cache verify": ["--cache", "--images", "--repair"],
    "cache export": ["--cache", "--to", "--with-images", "--images", "--overwrite"],
    "cache import": ["--cache", "--from", "--images"],
    "cache prune": ["--cache", "--to", "--channels", "--ranking", "--images"],
    "cache encode": ["--cache", "--to", "--encoding", "--images"],
    "cache merge": ["--cache", "--to"],
    "lmms": [],
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli(*name.split(), "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert [option for option in OPTIONS[name] if option not in text] == []


def test_llava_dry_run_needs_no_weights(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli("extract", "--lmm", "llava", "--data-root", data_root, "--cache", tmp_path / "c", "--dry-run")
    text = capsys.readouterr().out
    for word in (
        "llava-hf/llava-1.5-7b-hf",
        "32 layers x 32 heads, stored as 24x24",
        "vit_l",
        "samples",
        "free disk",
        "CPU",
    ):
        assert word in text
    assert "estimated" in text
    assert not (tmp_path / "c").exists()


def test_llava_without_weights_ends_in_one_clear_line(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("extract", "--lmm", "llava", "--data-root", data_root, "--cache", tmp_path / "c", "--local", expect=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum("error:" in line for line in lines) == 1
    assert "hf download llava-hf/llava-1.5-7b-hf --local-dir DIR" in lines[-1] and "--lmm DIR" in lines[-1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["extract", "--dataset", "nothing", "--data-root", "."], "there is no dataset 'nothing'"),
        (["extract", "--lmm", "nothing"], "known are tiny, aya-vision"),
        (["extract", "--batch-size", "0"], "must be at least 1"),
        (["extract", "--max-answer-tokens", "0"], "must be at least 1"),
        (["extract", "--unit-deadline", "0"], "--unit-deadline 0.0: must be more than 0 minutes"),
        (["extract", "--dtype", "int8"], "float32, bfloat16 or float16"),
        (["extract", "--device", "foo"], "--device foo: torch has "),
        (["extract", "--device", "cuda:99"], "--device cuda:99: torch has "),
        (["train-head", "--cache", "nowhere"], "run extract first"),
        (["evaluate", "--cache", "nowhere"], "run extract first"),
        (["analyze", "--cache", "nowhere"], "run extract first"),
        (["evaluate", "--lam", "2"], "between 0 and 1"),
        (["evaluate", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["import-head", "--file", "nothing.pth"], "there is no checkpoint nothing.pth"),
        (["cache", "info", "--cache", "nowhere"], "run extract first"),
        (["cache", "prune", "--cache", "nowhere"], "run extract first"),
        (["cache", "encode", "--cache", "nowhere"], "run extract first"),
        (["cache", "merge", "--cache", "nowhere"], "run extract first"),
        (["cache", "merge"], "two caches at least: --cache A --cache B"),
    ],
)
def test_wrong_input_is_one_line_with_a_cure(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli(*args, expect=2)
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and says in error[-1]
    assert "Traceback" not in "\n".join(error)


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(28, "No space left", "/a/b"), "error: /a/b: No space left; free some, or choose another place"),
        (OSError(28, "No space left"), "error: No space left; free some, or choose another place"),
        (ConnectionError("no Ray\nat host:1"), "error: no Ray at host:1"),
        (OSError(), "error: OSError()"),
    ],
)
def test_errors_of_the_system_say_what_they_know(
    raised: OSError, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise raised

    monkeypatch.setitem(module.RUN, LMMs, fails)
    cli("lmms", expect=2)
    assert capsys.readouterr().err.strip() == line


def test_a_numbered_gpu_counts_as_one(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, count in (("cuda:1", 1), ("cuda", 2), ("auto", 2)):
        cli("extract", "--data-root", data_root, "--cache", tmp_path / "c", "--device", device, "--dry-run")
        assert f"{count} GPU(s), {count} Ray worker(s)" in capsys.readouterr().out


def test_lmms_lists_grid_channels_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    cli("lmms")
    text = capsys.readouterr().out
    assert "24x24" in text and "32x32=1024" in text and "1,179,648" in text
    listed = {row["name"]: row for row in json.loads(text.splitlines()[-1])["lmms"]}
    assert listed["llava"]["bytes_per_object"] == 2 * 1024 * 24 * 24 and listed["llava"]["views"] == "1"
    assert listed["internvl3"]["views"] == "1 or 2"


def test_manifest_and_cache_commands(
    data_root: Path, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli("manifest", "build", "--data-root", data_root, "--file", tmp_path / "m.parquet")
    cli("manifest", "info", "--file", tmp_path / "m.parquet")
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {(row["dataset"], row["split"]) for row in last["splits"]} >= {
        ("scenes-refcoco", "testA"),
        ("scenes-png", "val"),
    }
    asked = [row for row in last["splits"] if row["dataset"] == "scenes-reasonseg"]
    assert sum(row["questions"] for row in asked) == sum(row["samples"] for row in asked) == 6
    assert last["problems"] == 0
    cli("cache", "info", "--cache", small_cache)
    info = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert info["state"] == "complete" and info["arrays"]["attention"]["shape"][1:] == [30, 12, 12]
    cli("cache", "verify", "--cache", small_cache)
    out = capsys.readouterr().out
    assert out.count("every byte as committed") == 2  # also of the images
    assert [each["problems"] for each in json.loads(out.splitlines()[-1])["caches"]] == [[], []]


def test_another_version_of_the_dataset_is_refused_and_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, cache = tmp_path / "scenes", tmp_path / "cache"
    write_scenes(root, ScenesConfig(train=1, val=1, test_a=1, test_b=1, narratives=1, shifted=1))
    command = ["extract", "--dataset", "scenes-refcoco", "--splits", "val", "--local"]
    command += ["--data-root", str(root), "--cache", str(cache)]
    cli(*command)
    before = tree(cache)
    path = root / "refcoco/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    changed = next(ref for ref in refs if ref["split"] == "val")["sentences"][0]
    said, changed["sent"] = changed["sent"], "another thing"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    capsys.readouterr()
    cli(*command, expect=2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    field = "files.manifest.parquet.pieces[0][0].text"
    assert f'{field}: cache has "{said}", this run "another thing"' in errors[0] and "--overwrite" in errors[0]
    assert tree(cache) == before
