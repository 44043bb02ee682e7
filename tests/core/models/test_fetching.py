from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from safetensors.torch import save
from small_models import small_lora
from stand_in_hub import StandInHub, commit_of, folder_bytes, serving

from diffmining_core.errors import InputError
from diffmining_core.models import tiny
from diffmining_core.models.fetching import first_line
from diffmining_core.models.files import TINY, ModelSource, find_model, model_digest

_TINY = Path(tiny.__file__).parent
PIPELINE = {
    name: content
    for name, content in folder_bytes(_TINY).items()
    if not name.endswith((".py", ".pyc"))  # the folder is a Python package too
}
NOISE = {
    "README.md": b"read me",
    "v1-5-pruned.safetensors": b"the whole in one file",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "safety_checker/model.safetensors": b"not for mining",
}


@pytest.fixture
def bucket_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a pipeline in memory; copies go to a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"memory://{uuid4().hex}/models/tiny"
    put(url, {**PIPELINE, **NOISE})
    return url


def put(url: str, files: dict[str, bytes]) -> None:
    fs, path = fsspec.url_to_fs(url)
    fs.pipe({f"{path}/{name}": content for name, content in files.items()})


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "diffmining" / "models").iterdir())


def test_a_url_is_copied_once_with_what_is_needed_of_it(bucket_url: str, tmp_path: Path) -> None:
    files = find_model(bucket_url)
    assert model_digest(files) == model_digest(find_model(TINY))
    (folder,) = cached(tmp_path)
    assert files.folders["unet"] == folder / "unet"
    there = folder_bytes(folder)
    assert there == {
        name: content for name, content in PIPELINE.items() if not name.endswith(".md")
    }
    before = (folder / "unet" / "config.json").stat().st_mtime_ns
    assert find_model(bucket_url).folders == files.folders
    assert (folder / "unet" / "config.json").stat().st_mtime_ns == before


def test_a_url_whose_files_change_is_copied_anew(bucket_url: str, tmp_path: Path) -> None:
    first = find_model(bucket_url)
    weights = "unet/diffusion_pytorch_model.safetensors"
    put(bucket_url, {weights: PIPELINE[weights][:-1] + b"!"})
    second = find_model(bucket_url)
    assert model_digest(first) != model_digest(second)
    assert len(cached(tmp_path)) == 2


def test_a_copy_that_breaks_off_is_no_copy(
    bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, _ = fsspec.url_to_fs(bucket_url)
    whole = type(fs).get_file

    def cut(self: object, source: str, target: str, **options: object) -> None:
        whole(self, source, target, **options)
        if target.endswith("vae/diffusion_pytorch_model.safetensors"):
            Path(target).write_bytes(Path(target).read_bytes()[:100])

    with monkeypatch.context() as network:
        network.setattr(type(fs), "get_file", cut)
        with pytest.raises(ConnectionError, match=r"came with 100 bytes, but its listing says"):
            find_model(bucket_url)
    assert cached(tmp_path) == []
    assert model_digest(find_model(bucket_url)) == model_digest(find_model(TINY))


def test_a_url_of_a_lora_is_a_file_or_its_folder(bucket_url: str) -> None:
    weights = save(small_lora(_TINY))
    put(bucket_url + "-lora", {"any.safetensors": weights, "README.md": b""})
    for url in (f"{bucket_url}-lora", f"{bucket_url}-lora/any.safetensors"):
        lora = find_model(ModelSource(TINY, lora=url)).lora
        assert lora is not None
        assert lora.read_bytes() == weights


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("memory://nothing/here", "has none of the files that are needed, but no others"),
        ("nosuch://bucket/model", "is at no address that can be read"),
    ],
)
def test_a_url_without_a_model_is_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        find_model(url)
    assert "\n" not in str(caught.value)


def test_a_file_url_is_the_folder_itself(tmp_path: Path) -> None:
    folder = shutil.copytree(_TINY, tmp_path / "model")
    assert find_model(f"file://{folder}").folders["vae"] == folder / "vae"


FIND = """
import json
from diffmining_core.errors import InputError
from diffmining_core.models.files import ModelSource, find_model, model_digest
answers = []
for source in {sources!r}:
    try:
        files = find_model(ModelSource(*source))
        answers.append([str(files.folders["unet"]), model_digest(files)])
    except InputError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def found(hub: StandInHub, home: Path, *sources: tuple[str | None, ...]) -> list[list[str] | str]:
    """What another process finds: folder of the UNet and digest, or the sentence."""
    ended = hub.run(home, FIND.format(sources=list(sources)))
    assert ended.returncode == 0, ended.stderr
    answers: list[list[str] | str] = json.loads(ended.stdout)
    assert all("\n" not in answer for answer in answers if isinstance(answer, str))
    return answers


def test_models_come_from_the_hub_pinned_and_then_without_it(tmp_path: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    whole = {**PIPELINE, **NOISE}
    changed = {**PIPELINE, weights: PIPELINE[weights][:-1] + b"!"}
    pickle = {n.replace("model.safetensors", "model.bin"): b for n, b in PIPELINE.items()}
    repositories = {
        "models/some/model": {"main": whole, "refs/pr/3": changed},
        "models/some/pickle": {"main": pickle},
    }
    home = tmp_path / "home"
    asked = [
        ("some/model",),
        ("some/model@refs/pr/3",),
        ("some/model@v9",),
        ("some/pickle",),
        ("some/gated",),
        ("some/nothing",),
    ]
    with serving(StandInHub(repositories, gated={"models/some/gated"})) as hub:
        main, pinned, no_revision, pickles, gated, nothing = found(hub, home, *asked)
        assert commit_of(whole) in main[0]
        assert commit_of(changed) in pinned[0]
        assert main[1] == model_digest(find_model(TINY)) != pinned[1]
        assert hub.downloaded() & (NOISE.keys() | {"unet/diffusion_pytorch_model.bin"}) == set()
        assert "has no revision 'v9'" in no_revision
        assert "The unet of model some/pickle should have its weights as safetensors" in pickles
        assert "is gated" in gated
        assert "https://huggingface.co/some/gated" in gated
        assert "is no folder here and not on the hub, or private there" in nothing
        hub.asked.clear()
        assert found(hub, home, ("some/model",)) == [main]
        assert hub.downloaded() == set()
    # The hub has gone.
    offline = found(hub, home, ("some/model",), ("some/model@refs/pr/3",), ("some/other",))
    assert offline[:2] == [main, pinned]
    assert "could not be had from the hub" in offline[2]


def test_a_text_encoder_from_the_hub_leaves_the_other_frameworks_weights(tmp_path: Path) -> None:
    tower = {
        "config.json": PIPELINE["text_encoder/config.json"],
        "model.safetensors": PIPELINE["text_encoder/model.safetensors"],
        "tokenizer.json": PIPELINE["tokenizer/tokenizer.json"],
        "tokenizer_config.json": PIPELINE["tokenizer/tokenizer_config.json"],
    }
    noise = {"pytorch_model.bin": b"p", "tf_model.h5": b"t", "preprocessor_config.json": b"{}"}
    pickled = {n: b for n, b in (tower | noise).items() if n != "model.safetensors"}
    repositories = {
        "models/a/clip": {"main": tower | noise},
        "models/a/old": {"main": pickled},
    }
    with serving(StandInHub(repositories)) as hub:
        clip, old = found(hub, tmp_path, ("tiny", "a/clip"), ("tiny", "a/old"))
        assert clip[1] == model_digest(find_model(TINY))
        assert "should have its weights as safetensors" in old
        assert "a/old" in old
        assert hub.downloaded() == set(tower)


def test_the_first_line_of_an_error_is_its_sentence() -> None:
    assert first_line(ValueError("one.\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_a_model_comes_from_an_s3_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"s3://{bucket}/{uuid4().hex}"
    with pytest.raises(InputError, match="has none of the files that are needed"):
        find_model(url)
    put(url, {**PIPELINE, **NOISE})
    files = find_model(url)
    assert model_digest(files) == model_digest(find_model(TINY))
    assert find_model(url).folders == files.folders
    assert len(cached(tmp_path)) == 1
