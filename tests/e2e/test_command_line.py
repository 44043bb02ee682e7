"""The command `diffmining` as a user runs it: from anywhere, killed midway, with bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, REPOSITORY, diffmining, mine_words, options
from PIL import Image
from stored import results

from diffmining_core.models.files import TINY, find_model
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from flows.cli import app
from flows.mine import mine
from flows.parameters import FinetuneParameters, MineParameters, StudyParameters

Make = Callable[..., MineParameters]
FirstRun = tuple[Path, dict[str, Any], int]


def sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """What a refused command says: one sentence, the last line, and no traceback before it."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("diffmining: ")
    assert ended.stdout == ""
    return last.removeprefix("diffmining: ")


def test_a_rerun_starts_and_ends_its_own_server_and_loads_no_torch(
    root: Path, parameters: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    program = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "from flows.cli import main; main()"
    )
    started = time.monotonic()
    ended = diffmining(*mine_words(parameters(root)), program=[sys.executable, "-c", program])
    assert ended.returncode == 0, ended.stderr
    assert f"Open {root}/index.html" in ended.stdout
    assert "0 UNet forwards" in ended.stdout
    assert ended.stdout.rstrip().endswith("False")
    assert time.monotonic() - started < 30 or os.getloadavg()[0] > 2
    port = re.search(r"temporary server on http://127.0.0.1:(\d+)", ended.stderr)
    assert port is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port[1]))) != 0, "the server is left running"


@contextmanager
def killed_once(appears: Callable[[], bool], parameters: MineParameters) -> Iterator[None]:
    """Run the command until `appears`, then SIGKILL it."""
    process = subprocess.Popen(
        [*COMMAND, *mine_words(parameters)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not appears():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    yield


def test_a_run_killed_twice_ends_like_one_left_alone(
    first_run: FirstRun, parameters: Make, tmp_path: Path
) -> None:
    root = tmp_path / "killed"
    small = parameters(root, checkpoint_every=2)
    with killed_once(lambda: bool(list(root.glob("finetune/*/checkpoints/*.json"))), small):
        (marker, *_) = sorted(root.glob("finetune/*/checkpoints/*.json"))
        step = int(marker.stem.split("-")[1])
        assert 0 < step < 6
        assert not (root / "manifests" / "finetune").exists()
    with killed_once(lambda: bool(list(root.glob("manifests/typicality/*.json"))), small):
        assert not (root / "index.html").exists()
    published = {path: path.read_bytes() for path in (root / "manifests").rglob("*.json")}

    mine(small)
    (finetuned,) = read_manifests(open_root(str(root)), "finetune")
    assert finetuned.counts["unet_forwards"] == 2 * (6 - step)
    assert {path: path.read_bytes() for path in published} == published
    for path in published:
        stage, key = path.parent.name, path.stem
        attempts = list((root / stage / key).glob("attempt-*"))
        assert len(attempts) == 1, f"{stage}/{key} was computed again"
    summary = json.loads((root / "summary.json").read_text())
    done_before = sum(path.parent.name == "typicality" for path in published)
    assert summary["computed"]["typicality"] == 4 - done_before
    assert "finetune" not in summary["computed"]
    assert results(root) == results(first_run[0])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two labels with two images each."""
    folder = tmp_path / "photos"
    for label, colour in (("cats", "teal"), ("dogs", "navy")):
        (folder / label).mkdir(parents=True)
        for number in (1, 2):
            size = (64 + 8 * number, 64)
            Image.new("RGB", size, colour).save(folder / label / f"{number}.jpg")
    return folder


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--dataset", "{tmp}/nothing", "there is no such folder"),
        ("--dataset", "{tmp}/photos/cats", "lie in no sub-folder"),
        ("--model", "nobody/no-such-model", "could not be had from the hub"),
        ("--model", "{tmp}/photos", "is not a Stable Diffusion pipeline"),
        ("--root", "{tmp}/photos/cats/1.jpg/root", "lies in the dataset"),
        ("--root", "/proc/diffmining", "cannot be made"),
        ("--root", "{tmp}/photos", "lies in the dataset"),
        ("--root", "{tmp}", "files that are no run's results"),
        ("--prompt", "A photo", "must hold {label}"),
        ("--draws", "0", "0 is less than the minimum of 2"),
        ("--t-min", "0.9", "below t_max"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    photos: Path, tmp_path: Path, option: str, value: str, words: str
) -> None:
    root = tmp_path / "root"
    given = {"--dataset": str(photos), "--root": str(root)}
    given[option] = value.replace("{tmp}", str(tmp_path))
    photos_before = sorted(photos.rglob("*"))
    started = time.monotonic()
    # The discard port of this machine: a network on which nothing answers.
    ended = diffmining(
        "mine", *(word for pair in given.items() for word in pair), HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert words in sentence(ended)
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - started < 20 or os.getloadavg()[0] > 2
    assert not root.exists(), "a refused run leaves the place free for the next"
    assert sorted(photos.rglob("*")) == photos_before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["mine", "--recipe", "nowhere"], "there is no recipe 'nowhere'"),
        (["mine", "--recipe", "places"], "with a recipe, give the one that holds"),
        (["index", "--recipe", "xray"], "there is no file BBox_List_2017.csv"),
        (["finetune", "--finetune-steps", "0"], "should be 1 or more"),
        (["finetune", "--dry-run", "--lora", "{tmp}/none"], "none"),
        (["study", "finetuning", "--masks", "{tmp}/photos"], "no PNG below it"),
    ],
)
def test_commands_refuse_what_they_cannot_use_in_one_sentence(
    photos: Path, tmp_path: Path, command: list[str], words: str
) -> None:
    dataset = tmp_path / "gone" if words.startswith("with a recipe") else photos
    given = [*command, "--dataset", str(dataset), "--root", str(tmp_path / "root")]
    ended = diffmining(
        *(word.replace("{tmp}", str(tmp_path)) for word in given),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert words in sentence(ended)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("command", "part"),
    [(["mine"], "scheduler"), (["mine", "--dry-run"], "lora")],
)
def test_a_model_that_would_be_misread_is_refused_before_anything_is_computed(
    photos: Path, tmp_path: Path, command: list[str], part: str
) -> None:
    model = shutil.copytree(find_model(TINY).folders["unet"].parent, tmp_path / "model")
    words = [*command, "--dataset", str(photos), "--root", str(tmp_path / "root")]
    words += ["--model", str(model)]
    if part == "lora":
        words += ["--lora", str(model / "vae" / "diffusion_pytorch_model.safetensors")]
        expected = r"LoRA .*pytorch_model.safetensors does not fit this model's UNet .*; give"
    else:
        path = model / "scheduler" / "scheduler_config.json"
        path.write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}')
        expected = r"scheduler_config.json of model .* names 'FlowMatchEuler.*; give a model"
    assert re.search(expected, sentence(diffmining(*words)))
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("prefect_api")
def test_finetune_says_where_the_model_lies(
    parameters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mining = {"draws", "k", "top"}
    given = parameters(tmp_path / "root").model_dump(exclude_unset=True)
    words = options({name: value for name, value in given.items() if name not in mining})
    app(["finetune", *words], result_action="return_value")
    output = capsys.readouterr().out
    assert "16 images of 4 labels" in output
    model = output.strip().splitlines()[-1].removeprefix("Use it with --model ")
    assert (Path(model) / "unet").is_dir()
    app(["finetune", "--dry-run", *words], result_action="return_value")
    assert "epochs" in capsys.readouterr().out


def test_a_root_with_another_run_is_refused_and_untouched(root: Path, photos: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    ended = diffmining("mine", "--dataset", str(photos), "--root", str(root))
    assert "holds the results of dataset" in sentence(ended)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("prefect_api")
def test_what_only_reading_the_images_shows_is_one_sentence_too(
    photos: Path, tmp_path: Path
) -> None:
    whole = (photos / "dogs" / "2.jpg").read_bytes()
    (photos / "dogs" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = ["mine", "--dataset", str(photos), "--root", str(tmp_path / "root")]
    said = sentence(diffmining(*arguments, "--max-bad-share", "0.1"))
    assert "1 of 4 images of a shard cannot be used" in said
    assert "truncated" in said.lower()
    assert "fewer: dogs (1)" in sentence(diffmining(*arguments))


@pytest.mark.parametrize(
    ("command", "form"),
    [
        (["mine"], MineParameters),
        (["finetune"], FinetuneParameters),
        (["study", "finetuning"], StudyParameters),
    ],
)
def test_help_names_every_option_with_its_meaning(
    command: list[str], form: type[FinetuneParameters]
) -> None:
    ended = diffmining(*command, "--help", COLUMNS="300")
    assert ended.returncode == 0
    for name, field in form.model_fields.items():
        assert f"--{name.replace('_', '-')}" in ended.stdout
        assert field.description is not None
        assert field.description.split()[0] in ended.stdout
