"""Small pipelines with random weights in the shapes in which real ones are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build, byte_tokenizer

WIDTH = 64


def sd2(seed: int = 0) -> Pipeline:
    """As Stable Diffusion 2.1: velocity, heads by level, linear projections, attention upcast."""
    pipeline = build(seed)
    torch.manual_seed(seed)
    pipeline.unet = UNet2DConditionModel(
        sample_size=24,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=[4, 8, 8, 8],
        use_linear_projection=True,
        upcast_attention=True,
        norm_num_groups=8,
    )
    pipeline.text_encoder = CLIPTextModel(text_config(num_hidden_layers=3, hidden_act="gelu"))
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )
    pipeline.__post_init__()
    return pipeline


def text_config(**changes: Any) -> CLIPTextConfig:
    """A text tower of the tiny model's width and vocabulary."""
    settings = {
        "vocab_size": 514,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    return CLIPTextConfig(**{**settings, **changes})


def save_whole_clip(folder: Path, seed: int = 1, **changes: Any) -> CLIPModel:
    """A whole CLIP model's repository as `openai/clip-…` and `geolocal/StreetCLIP` are laid out.

    Text and vision tower in one file, with the index of positions that older versions stored, and
    the tokenizer and the image processor's settings beside it.
    """
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
    }
    config = CLIPConfig(
        text_config=text_config(**changes).to_dict(), vision_config=vision, projection_dim=32
    )
    model = CLIPModel(config)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 28}))
    return model


def small_lora(model: Path) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2, which changes nothing, of one layer of the pipeline in `model`."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    unet = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    wide, narrow = unet[f"{layer}.weight"].shape
    return {
        f"unet.{layer}.lora_A.weight": torch.zeros(2, narrow),
        f"unet.{layer}.lora_B.weight": torch.zeros(wide, 2),
    }


def make_old_layout(folder: Path) -> None:
    """What pipelines published in 2022 have: PNDM's settings, the VAE's old names, and more.

    A tokenizer of vocabulary and merges, the index of positions among the text encoder's weights,
    a safety checker, pickles. `folder` holds a pipeline of today.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    kept = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset")
    old = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    path.write_text(json.dumps({**old, "clip_sample": False, **{k: settings[k] for k in kept}}))

    config = folder / "vae" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in settings.items() if k != "scaling_factor"}))
    weights_file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = {}
    for name, tensor in load_file(weights_file).items():
        for new, previous in names.items():
            name = name.replace(new, previous)
        weights[name] = tensor
    save_file(weights, weights_file, metadata={"format": "pt"})

    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, metadata={"format": "pt"})
    write_old_tokenizer(folder / "tokenizer")

    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"another")


def write_old_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """The same tokenizer as vocabulary, merges and special tokens, in the place of its one file."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "add_prefix_space": False, "errors": "replace", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )


def save_half(pipeline: Pipeline, folder: Path, variant: str | None) -> None:
    """A pipeline with float16 weights, alone in the folder, as the variant or as the weights."""
    pipeline.save(folder)
    for component in ("unet", "vae", "text_encoder"):
        (path,) = (folder / component).glob("*.safetensors")
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        path.unlink()
        name = f"{path.stem}.{variant}{path.suffix}" if variant else path.name
        save_file(half, folder / component / name, metadata={"format": "pt"})


def save_numbered(pipeline: Pipeline, folder: Path, variant: str | None = None) -> None:
    """A pipeline whose UNet's weights are in several numbered files with their index."""
    pipeline.save(folder)
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="700KB", variant=variant)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
