"""CLIP ranking: how much more each place of an image is like its label's prompt than like none.

In: model-size images. Out: maps of the cosine of CLIP's image tokens with the label's prompt less
that with the null prompt, in the cells of typicality's maps, so that all that follows is the same.
A token goes through the last normalisation and the projection that CLIP was trained to use for the
whole image's token alone (as in Siglidis et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from diffmining_core.baselines.clip_files import PREPROCESSOR, ClipFiles
from diffmining_core.errors import InputError
from diffmining_core.features.dift import patch_features
from diffmining_core.models.fetching import first_line
from diffmining_core.models.files import chosen_weights
from diffmining_core.models.quiet import quiet_libraries
from diffmining_core.patches.scoring import bilinear_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, where the model's settings do not say."""

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]


@dataclass
class Clip:
    """A CLIP model on one device, in float32."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.model.device)

    @torch.inference_mode()
    def embed_prompt(self, prompt: str) -> torch.Tensor:
        """The embedding [d] of a prompt, of unit length."""
        tokens = self.tokenizer(
            [prompt],
            padding="max_length",
            max_length=self.model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled)[0].float(), dim=0)

    @torch.inference_mode()
    def image_tokens(self, pixels: Pixels) -> torch.Tensor:
        """The tokens [d, rows, columns] of an image uint8 [h, w, 3], each of unit length.

        The image is resized so that its shorter side is the one that the model was trained on; of
        a longer one, to whole tokens, the positions are interpolated. The whole image is seen.
        """
        vision = self.model.vision_model
        rows, columns = _token_grid(pixels.shape[:2], vision.config)
        side = vision.config.patch_size
        image = Image.fromarray(pixels).resize(
            (columns * side, rows * side), Image.Resampling.BICUBIC
        )
        values = torch.from_numpy(np.asarray(image, np.float32) / 255)
        values = (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        batch = values.permute(2, 0, 1)[None].to(self.device)
        hidden = vision(pixel_values=batch, interpolate_pos_encoding=True).last_hidden_state
        projected = self.model.visual_projection(vision.post_layernorm(hidden[0, 1:]))
        return F.normalize(projected.float(), dim=1).T.reshape(-1, rows, columns)


def load_clip(files: ClipFiles, device: str) -> Clip:
    """Load a CLIP model; InputError if its files do not make one."""
    variant, _ = chosen_weights(files.names)
    given = files.settings(PREPROCESSOR) if PREPROCESSOR in files.names else {}
    try:
        with quiet_libraries():
            tokenizer = CLIPTokenizer.from_pretrained(files.folder, local_files_only=True)
            model, how = CLIPModel.from_pretrained(
                files.folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The CLIP model {files.name} cannot be loaded ({first_line(error)}); give a folder "
            "that transformers' save_pretrained wrote, or a hub id."
        ) from error
    if missing := sorted(how["missing_keys"]):
        raise InputError(
            f"The CLIP model {files.name} should have all its weights, but {len(missing)} are "
            f"missing, such as {missing[0]}; fetch it again."
        )
    return Clip(
        model=model.requires_grad_(False).eval().to(device),
        tokenizer=tokenizer,
        mean=given.get("image_mean", MEAN),
        std=given.get("image_std", STD),
    )


def clip_map(
    tokens: torch.Tensor, prompt: torch.Tensor, null_prompt: torch.Tensor, image_hw: Any, cell: int
) -> Map:
    """cos(token, prompt) − cos(token, null prompt), float32 [H / cell, W / cell].

    tokens [d, rows, columns], prompts [d], all of unit length. The tokens' numbers are upsampled
    bilinearly to the image, and a cell has the mean of its pixels.
    """
    likeness = torch.einsum("drc,d->rc", tokens, prompt - null_prompt).cpu().numpy()
    rows, columns = (
        _cell_weights(n, length, cell) for n, length in zip(likeness.shape, image_hw, strict=True)
    )
    return (rows @ likeness.astype(np.float64) @ columns.T).astype(np.float32)


def clip_features(
    tokens: torch.Tensor, patches: Sequence[tuple[int, int]], size: int, image_hw: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The mean token under each patch [len(patches), d], of unit length."""
    features: npt.NDArray[np.float32] = (
        patch_features(tokens, patches, size, image_hw).cpu().numpy()
    )
    return features


def _cell_weights(n_tokens: int, length: int, cell: int) -> npt.NDArray[np.float64]:
    """Matrix [length / cell, n_tokens]: upsampling one axis, then the mean over each cell."""
    weights = bilinear_weights(n_tokens, length)
    means: npt.NDArray[np.float64] = weights.reshape(length // cell, cell, n_tokens).mean(axis=1)
    return means


def _token_grid(image_hw: Any, config: Any) -> tuple[int, int]:
    """Tokens down and across an image: as many on its shorter side as in training."""
    trained = config.image_size // config.patch_size
    height, width = image_hw
    short = min(height, width)
    return max(1, round(trained * height / short)), max(1, round(trained * width / short))
