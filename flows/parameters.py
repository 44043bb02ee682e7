"""What a person can set when mining: the form in the Prefect UI and the options of the command."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class IndexParameters(BaseModel):
    """Index a dataset into shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Annotated[
        str,
        Field(
            description="Folder with a sub-folder of images per label, CSV or Parquet manifest, "
            "WebDataset tars or Parquet files with images: a path, URL or pattern."
        ),
    ]
    root: Annotated[
        str, Field(description="Folder or URL for the results; rerun with the same to go on.")
    ]
    shard_rows: Annotated[int, Field(ge=1, description="Images per dataset shard.")] = 1000
    max_bad_share: Annotated[
        float,
        Field(ge=0, le=1, description="Share of unusable images from which a shard fails."),
    ] = 0.25


class MineParameters(IndexParameters):
    """Mine what is typical of each label of a dataset."""

    model: Annotated[
        str,
        Field(description="Hub id or folder of a Stable Diffusion pipeline, or 'tiny'."),
    ] = "tiny"
    prompt: Annotated[
        str, Field(description="Prompt with {label} where the label's name goes.")
    ] = "An image of {label}."
    null_prompt: Annotated[
        str, Field(description="Prompt without the label, against which typicality is measured.")
    ] = ""
    size: Annotated[
        int | None,
        Field(ge=32, description="Shorter side of the images in pixels; the model's own if unset."),
    ] = None

    finetune_steps: Annotated[
        int, Field(ge=0, description="Finetuning steps; 0 mines with the model as it is.")
    ] = 5000
    finetune_batch: Annotated[int, Field(ge=1, description="Images per finetuning step.")] = 32
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's peak learning rate.")] = 1e-4
    schedule: Annotated[
        Literal["constant", "cosine"],
        Field(description="Learning rate: constant, or warm-up and cosine decay."),
    ] = "constant"
    null_share: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of training prompts replaced by the null prompt."),
    ] = 0.05
    lora_rank: Annotated[
        int, Field(ge=0, description="Train a LoRA of this rank; 0 trains all UNet weights.")
    ] = 0
    retrain: Annotated[
        bool,
        Field(description="Finetune anew when the dataset has grown, not keep the model it has."),
    ] = False

    draws: Annotated[
        int, Field(ge=2, description="Draws of (noise, timestep) per image: N of the paper.")
    ] = 100
    t_min: Annotated[
        float, Field(ge=0, le=1, description="Least timestep, as a share of the 1000 steps.")
    ] = 0.1
    t_max: Annotated[
        float, Field(ge=0, le=1, description="End of the timesteps, as a share of the 1000 steps.")
    ] = 0.7
    before_shards: Annotated[
        int,
        Field(
            ge=-1,
            description="Dataset shards also measured before finetuning, to compare; -1 for all.",
        ),
    ] = 1
    batch_size: Annotated[
        int, Field(ge=1, description="Images per UNet call when measuring typicality.")
    ] = 32

    patch_size: Annotated[
        int | None,
        Field(ge=8, description="Side of a patch in pixels; chosen by the image size if unset."),
    ] = None
    patches_per_image: Annotated[int, Field(ge=1, description="Patches taken per image.")] = 5
    top: Annotated[int, Field(ge=1, description="Patches kept per label.")] = 1000
    k: Annotated[int, Field(ge=1, description="Clusters per label.")] = 32

    mode: Annotated[
        Literal["resume", "verify", "recompute"],
        Field(
            description="resume uses what is there and makes the rest; verify first rereads all "
            "results and makes damaged ones anew; recompute makes everything anew."
        ),
    ] = "resume"
    patch_workers: Annotated[
        int,
        Field(
            ge=0,
            description="Processes that score patches, 0 for threads; DASK_SCHEDULER_ADDRESS, if "
            "set, goes before.",
        ),
    ] = 0
    min_images: Annotated[
        int, Field(ge=1, description="Fewest good images that a label may have.")
    ] = 2
    seed: Annotated[int, Field(ge=0, description="Seed of everything random.")] = 42
    device: Annotated[
        str, Field(description="'auto', 'cpu', 'cuda' or a numbered one such as 'cuda:1'.")
    ] = "auto"

    def finetune_options(self, size: int) -> dict[str, Any]:
        """What decides a finetuned model, beside the base model and the images."""
        return {
            "steps": self.finetune_steps,
            "batch_size": self.finetune_batch,
            "learning_rate": self.learning_rate,
            "schedule": self.schedule,
            "null_share": self.null_share,
            "lora_rank": self.lora_rank,
            "size": size,
            "seed": self.seed,
            "prompt": self.prompt,
            "null_prompt": self.null_prompt,
        }

    def typicality_options(self, size: int) -> dict[str, Any]:
        """What decides a typicality map, beside the model and the image."""
        return {
            "prompt": self.prompt,
            "null_prompt": self.null_prompt,
            "size": size,
            "draws": self.draws,
            "t_range": [self.t_min, self.t_max],
            "seed": self.seed,
        }

    def patch_options(self, size: int, cell: int) -> dict[str, Any]:
        """What decides the patches of a map."""
        return {
            "size": self.patch_size or default_patch_size(size),
            "per_image": self.patches_per_image,
            "seed": self.seed,
            "cell": cell,
        }


def default_patch_size(size: int) -> int:
    """64 px at 512 px and 50 px at 256 px, as the authors used; 3/16 of the side below."""
    if size >= 512:
        return 64
    return 50 if size >= 256 else max(8, 3 * size // 16)
