"""What a person can set: the forms in the Prefect UI and the options of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema

from diffmining_core.errors import InputError
from diffmining_core.images.reach import DEFAULT_MAX_IMAGE_MB, reached_by
from diffmining_core.models.files import ModelSource
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.recipes import Recipe, load_recipe, plain_recipe
from diffmining_core.store.roots import refuse_secrets
from diffmining_core.typicality.rounds import rounds
from flows.forms import plain_optionals

OWN_TEXT_ENCODER = "own"
"""Said in place of a text encoder: the model's own, whatever the recipe names."""

FINETUNE_STEPS, FINETUNE_BATCH = 5000, 32
"""Where neither the user nor the recipe says."""

EIGHTHS = (1, 2, 4, 6, 8)
"""Of the finetuning, where models are looked at if nobody says: early steps change most."""

SIZE_QUARTERS = (2, 3, 4, 6, 8)
"""Of the patch size that is mined, those that are studied if nobody says."""

MERGED_FROM = 3
"""Times as many k-means groups as clusters, where merging is studied and nobody says."""

NO_SECRET = r"^(?!(?!github:).*//[^/?#]*:[^/?#]*@)(?!(https?|s3a?)://[^/?#]*@)(?!https?://.*\?)"
"""Pattern of addresses that a Prefect server may store: no password, key, token or query."""


def without_secret(address: str, info: ValidationInfo) -> str:
    """The address itself; InputError if it holds a secret: Prefect stores what a run is given."""
    refuse_secrets(f"{info.field_name}", address)
    return address


Address: TypeAlias = Annotated[
    str,
    AfterValidator(without_secret),
    WithJsonSchema({"type": "string", "pattern": NO_SECRET}),
]
"""A path, URL or hub id without credentials."""

DeviceName: TypeAlias = Annotated[
    str, Field(description="'auto', 'cpu', 'cuda' or a numbered one such as 'cuda:1'.")
]
Precision: TypeAlias = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Field(
        description="Of the UNet's arithmetic: auto is float32 on the CPU; on GPUs bfloat16 in "
        "finetuning and float16 in all else."
    ),
]

AllowedPlaces: TypeAlias = Annotated[
    tuple[Address, ...],
    Field(
        description="Place that the dataset's addresses may lead to beside the dataset's own: a "
        "folder, or an address such as https://cdn.example/photos/ or s3://bucket/photos/; "
        "https:// for every public host. Give it once for each place."
    ),
]
MaxImageMb: TypeAlias = Annotated[
    int, Field(ge=1, description="Largest file of an image, in MB; a larger one is set aside.")
]

DOERSCH, CLIP, CLASSIFIER, RANDOM = BASELINES = ("doersch", "clip", "classifier", "random")
"""Other ways to find what is typical."""

REFERENCE = "reference"
"""Trains the detectors of Doersch et al. as the released code does."""


class IndexParameters(BaseModel):
    """Index a dataset into shards."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=plain_optionals)

    dataset: Annotated[
        Address,
        Field(
            description="Folder with a sub-folder of images per label, CSV or Parquet manifest, "
            "WebDataset tars or Parquet files with images: a path, URL or pattern. With a recipe: "
            "the folder of the published dataset."
        ),
    ]
    root: Annotated[
        Address, Field(description="Folder or URL for the results; rerun with the same to go on.")
    ]
    recipe: Annotated[
        str | None,
        Field(
            description="How a published dataset lies and is mined: cardb, ftt, g3, places, xray "
            "(see `diffmining recipes`), or a recipe file of your own."
        ),
    ] = None
    shard_rows: Annotated[int, Field(ge=1, description="Images per dataset shard.")] = 1000
    max_bad_share: Annotated[
        float,
        Field(ge=0, le=1, description="Share of unusable images from which a shard fails."),
    ] = 0.25
    allow: AllowedPlaces = ()
    max_image_mb: MaxImageMb = DEFAULT_MAX_IMAGE_MB

    @property
    def dataset_name(self) -> str:
        """What a person calls the dataset: its folder, without the pattern for splits."""
        return self.dataset.rstrip("/*").rpartition("/")[2].replace("_", " ")

    @property
    def title(self) -> str:
        """What tells a run from others in a list: the dataset and where its results go."""
        return run_title(self.dataset_name, self.root)

    @property
    def reached(self) -> tuple[str, ...]:
        """The places that this run's child runs may read images from."""
        return (*reached_by(self.dataset), *self.allow)

    def chosen_recipe(self) -> Recipe:
        """The recipe named, or the plain one; InputError if there is no such recipe."""
        return load_recipe(self.recipe) if self.recipe else plain_recipe()


@dataclass(frozen=True)
class Settings:
    """What the recipe says, and what the user said in place of it."""

    recipe: Recipe
    prompts: PromptTemplate
    """Of typicality and DIFT."""
    training_prompts: PromptTemplate
    """Prompts of finetuning; they differ from `prompts` only with `--prompts official`."""
    size: int | None
    null_share: float
    t_range: tuple[float, float]
    patch_size: int | None
    text_encoder: str | None
    finetune_steps: int
    finetune_batch: int


class FinetuneParameters(IndexParameters):
    """Finetune a model on a dataset."""

    model: Annotated[
        Address,
        Field(
            description="A Stable Diffusion pipeline: 'tiny', a hub id (with @REVISION if wanted), "
            "a folder or a URL."
        ),
    ] = "tiny"
    text_encoder: Annotated[
        Address | None,
        Field(
            description="CLIP model whose text encoder takes the place of the model's for "
            "finetuning (hub id, folder or URL), 'own' for none; the recipe's if unset."
        ),
    ] = None
    lora: Annotated[
        Address | None,
        Field(description="LoRA weights to merge into the model: file, folder, URL or hub id."),
    ] = None
    prompts: Annotated[
        Literal["paper", "official", "official-training"],
        Field(
            description="The recipe's prompts: the paper's; official, those of the released code, "
            "which trains with one pair and measures with another; or official-training, those "
            "that the released weights were trained with, in training and measuring alike."
        ),
    ] = "paper"
    prompt: Annotated[
        str | None,
        Field(
            description="Prompt with {label} where the label's name goes; the recipe's, or "
            "'An image of {label}.', if unset."
        ),
    ] = None
    null_prompt: Annotated[
        str | None,
        Field(
            description="Prompt without the label, against which typicality is measured; the "
            "recipe's, or an empty one, if unset."
        ),
    ] = None
    size: Annotated[
        int | None,
        Field(
            ge=32,
            description="Shorter side of the images in pixels; the recipe's or the model's own if "
            "unset.",
        ),
    ] = None

    finetune_steps: Annotated[
        int | None,
        Field(
            ge=0,
            description="Finetuning steps, 0 for none; the recipe's, or 5000, if unset.",
        ),
    ] = None
    finetune_batch: Annotated[
        int | None,
        Field(
            ge=1,
            description="Images per finetuning step, over all devices; the recipe's, or 32, if "
            "unset.",
        ),
    ] = None
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's peak learning rate.")] = 1e-4
    schedule: Annotated[
        Literal["constant", "cosine"],
        Field(description="Learning rate: constant, or warm-up and cosine decay."),
    ] = "constant"
    null_share: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="Share of all images that are trained on with the null prompt; the "
            "recipe's, or 0.05, if unset.",
        ),
    ] = None
    lora_rank: Annotated[
        int, Field(ge=0, description="Train a LoRA of this rank; 0 trains all UNet weights.")
    ] = 0
    ema_decay: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Decay of the running mean of the weights that is kept as the model, such "
            "as 0.9999; 0 keeps the last weights.",
        ),
    ] = 0.0
    sampling: Annotated[
        Literal["natural", "balanced"],
        Field(description="Images as often as they are there, or each label equally often."),
    ] = "natural"
    held_out: Annotated[
        int,
        Field(
            ge=0,
            description="Images kept out of training, to see overfitting; never more than a tenth.",
        ),
    ] = 32
    seed: Annotated[int, Field(ge=0, description="Seed of everything random.")] = 42

    micro_batch: Annotated[
        int,
        Field(
            ge=0,
            description="Images at once on a device when finetuning, while the gradients of the "
            "batch accumulate; 0 for all at once.",
        ),
    ] = 0
    gradient_checkpointing: Annotated[
        bool, Field(description="Finetune with less memory, a third slower.")
    ] = False
    processes: Annotated[
        int, Field(ge=1, description="Processes that finetune together, one per GPU.")
    ] = 1
    checkpoint_every: Annotated[
        int, Field(ge=1, description="Finetuning steps between checkpoints.")
    ] = 200
    checkpoints_kept: Annotated[
        int, Field(ge=1, description="Checkpoints that are kept while finetuning.")
    ] = 2
    evaluate_every: Annotated[
        int, Field(ge=1, description="Finetuning steps between losses on the images held out.")
    ] = 100
    preview_every: Annotated[
        int, Field(ge=0, description="Finetuning steps between pictures per label; 0 for none.")
    ] = 1000
    previews_per_label: Annotated[
        int, Field(ge=1, description="Pictures per label in each preview.")
    ] = 4
    device: DeviceName = "auto"
    precision: Precision = "auto"

    def settings(self) -> Settings:
        """The recipe's values where nothing is set here; InputError for an unknown recipe."""
        recipe = self.chosen_recipe()
        measuring, training = {
            "paper": (recipe.prompts, recipe.prompts),
            "official": (recipe.official_typicality, recipe.official_training),
            "official-training": (recipe.official_training, recipe.official_training),
        }[self.prompts]
        training_prompts = self._said(training)
        null_share = _first(self.null_share, recipe.null_share)
        training_prompts.check_shares(null_share)
        steps = _first(self.finetune_steps, recipe.finetune_steps, FINETUNE_STEPS)
        text_encoder = self.text_encoder
        if text_encoder is None and steps:
            text_encoder = recipe.text_encoder
        return Settings(
            recipe=recipe,
            prompts=self._said(measuring),
            training_prompts=training_prompts,
            size=_first(self.size, recipe.size),
            null_share=null_share,
            t_range=recipe.t_range,
            patch_size=recipe.patch_size,
            text_encoder=None if text_encoder == OWN_TEXT_ENCODER else text_encoder,
            finetune_steps=steps,
            finetune_batch=_first(self.finetune_batch, recipe.finetune_batch, FINETUNE_BATCH),
        )

    def _said(self, pair: PromptTemplate) -> PromptTemplate:
        if self.prompt is not None:
            pair = replace(pair, conditioned=self.prompt)
        return pair if self.null_prompt is None else replace(pair, null=self.null_prompt)

    def model_source(self) -> ModelSource:
        """The model before finetuning, with its own text encoder."""
        return ModelSource(self.model, lora=self.lora)

    def start_source(self) -> ModelSource:
        """The model that is finetuned, or mined as it is."""
        return replace(self.model_source(), text_encoder=self.settings().text_encoder)

    def finetune_options(self, size: int) -> dict[str, Any]:
        """What decides a finetuned model, beside the model it starts from and the images."""
        settings = self.settings()
        return {
            "steps": settings.finetune_steps,
            "batch_size": settings.finetune_batch,
            "learning_rate": self.learning_rate,
            "schedule": self.schedule,
            "null_share": settings.null_share,
            "lora_rank": self.lora_rank,
            "ema_decay": self.ema_decay,
            "sampling": self.sampling,
            "held_out": self.held_out,
            "crop": settings.recipe.crop,
            "size": size,
            "seed": self.seed,
            **settings.training_prompts.as_options(),
        }

    def finetune_running(self) -> dict[str, Any]:
        """How finetuning runs, which decides nothing but its speed, memory and pictures."""
        return {
            "micro_batch": self.micro_batch,
            "gradient_checkpointing": self.gradient_checkpointing,
            "precision": self.precision,
            "processes": self.processes,
            "checkpoint_every": self.checkpoint_every,
            "checkpoints_kept": self.checkpoints_kept,
            "evaluate_every": self.evaluate_every,
            "preview_every": self.preview_every,
            "previews_per_label": self.previews_per_label,
        }


class TypicalityParameters(FinetuneParameters):
    """Measure how typical of its label each place of each image is."""

    retrain: Annotated[
        bool,
        Field(description="Finetune anew when the dataset has grown, not keep the model it has."),
    ] = False

    draws: Annotated[
        int, Field(ge=2, description="Draws of (noise, timestep) per image: N of the paper.")
    ] = 100
    draws_spread: Annotated[
        Literal["paired", "independent"],
        Field(
            description="paired: draws of opposite noise, timesteps spread evenly, with a third "
            "less variance; independent: each draw by itself, as in the paper."
        ),
    ] = "paired"
    t_min: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Least timestep, as a share of the 1000 steps; the recipe's, or 0.1, if "
            "unset.",
        ),
    ] = None
    t_max: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="End of the timesteps, as a share of the 1000 steps; the recipe's, or 0.7, "
            "if unset.",
        ),
    ] = None
    batch_size: Annotated[
        int,
        Field(
            ge=0,
            description="Images that are measured together; 0 for as many as the device does best "
            "with.",
        ),
    ] = 0
    fanout: Annotated[
        Literal["auto", "inline", "deployment"],
        Field(
            description="Who does the work that wants a GPU: inline, this process; deployment, "
            "runs of their own on the gpu work pool; auto, the latter where a worker runs this."
        ),
    ] = "auto"
    shards_per_batch: Annotated[
        int, Field(ge=1, description="Dataset shards that one run on the gpu work pool measures.")
    ] = 4

    def settings(self) -> Settings:
        """As for finetuning, and with the timesteps of measuring."""
        settings = super().settings()
        t_min, t_max = settings.t_range
        return replace(settings, t_range=(_first(self.t_min, t_min), _first(self.t_max, t_max)))

    def typicality_options(self, size: int) -> dict[str, Any]:
        """What decides a typicality map, beside the model and the image."""
        settings = self.settings()
        return {
            **settings.prompts.as_options(),
            "size": size,
            "draws": self.draws,
            "spread": self.draws_spread,
            "t_range": list(settings.t_range),
            "seed": self.seed,
        }


class PatchParameters(TypicalityParameters):
    """Cut typicality into patches and group those."""

    patch_size: Annotated[
        int | None,
        Field(
            ge=8,
            description="Side of a patch in pixels; the recipe's, or chosen by the image size, if "
            "unset.",
        ),
    ] = None
    patches_per_image: Annotated[int, Field(ge=1, description="Patches taken per image.")] = 5
    top: Annotated[int, Field(ge=1, description="Patches kept per label.")] = 1000
    k: Annotated[int, Field(ge=1, description="Clusters per label.")] = 32

    def settings(self) -> Settings:
        """As for measuring, and with the patch size of mining."""
        settings = super().settings()
        return replace(settings, patch_size=_first(self.patch_size, settings.patch_size))

    def features_options(self, size: int) -> dict[str, Any]:
        """What decides the features of a patch, beside the model and the image."""
        return {**self.settings().prompts.as_options(), "size": size, "seed": self.seed}

    def patch_options(self, size: int, cell: int) -> dict[str, Any]:
        """What decides the patches of a map."""
        return {
            "size": self.settings().patch_size or default_patch_size(size),
            "per_image": self.patches_per_image,
            "seed": self.seed,
            "cell": cell,
        }


class MineParameters(PatchParameters):
    """Mine what is typical of each label of a dataset."""

    before_shards: Annotated[
        int,
        Field(
            ge=-1,
            description="Dataset shards also measured before finetuning, to compare; -1 for all.",
        ),
    ] = 1

    adaptive: Annotated[
        bool,
        Field(
            description="Measure 8 draws of every image, and up to all of them only where a patch "
            "may still enter or leave its label's top, about a quarter of the forwards in all; the "
            "page says how sure the top is."
        ),
    ] = False

    finer: Annotated[
        int,
        Field(
            ge=1,
            description="k-means makes so many times k groups, merged into k clusters by average "
            "linkage: fewer mixed and duplicate ones. 1 for k-means alone, as in the paper.",
        ),
    ] = 1

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

    def first_round(self, size: int, cell: int) -> dict[str, Any]:
        """What of the options of typicality is another in the first of several rounds."""
        window = max(1, round(self.patch_options(size, cell)["size"] / cell))
        return {"draws": rounds(self.draws)[0], "window": window}


class TranslateParameters(PatchParameters):
    """Redraw images under every label, and group what is typical in all of them at one place."""

    targets: Annotated[
        tuple[str, ...],
        Field(description="Labels whose images are redrawn under each other; all if empty."),
    ] = ()
    per_label: Annotated[
        int, Field(ge=0, description="Images of each label that are redrawn; 0 for all.")
    ] = 1000
    steps: Annotated[int, Field(ge=2, description="Steps of DDIM sampling; they divide 1000.")] = 50
    inversion_stride: Annotated[
        int,
        Field(
            ge=1,
            description="Timesteps between those of the DDIM inversion; they divide 1000 / steps. "
            "1 is exact; a shorter inversion is faster and says how well images come back.",
        ),
    ] = 1
    guidance: Annotated[
        float, Field(ge=0, description="Of the label that an image is redrawn under.")
    ] = 7.5
    start: Annotated[
        Literal["inverted", "official"],
        Field(
            description="Latent that redrawing begins with: the one inverted to its first step, or "
            "to the last of the 1000, as in the released research code."
        ),
    ] = "inverted"
    top: Annotated[int, Field(ge=1, description="Sequences kept over all labels.")] = 10_000
    k: Annotated[int, Field(ge=1, description="Joint clusters.")] = 32

    def labels(self, there: Sequence[str]) -> list[str]:
        """The labels to redraw under, of those that are there; InputError unless two are."""
        if unknown := sorted(set(self.targets) - set(there)):
            raise InputError(
                f"targets should be labels of the dataset, but {unknown[0]!r} is none; it has "
                f"{', '.join(there[:20])}{' and more' if len(there) > 20 else ''}."
            )
        wanted = [label for label in there if label in self.targets or not self.targets]
        if len(wanted) < 2:
            raise InputError(
                f"images are redrawn under other labels, which takes two, but there is "
                f"{len(wanted)}; give more targets, or a dataset with more labels."
            )
        return wanted

    def sequence_options(self, size: int, cell: int) -> dict[str, Any]:
        """What decides the sequences of an image, given its maps."""
        options = self.patch_options(size, cell)
        return {name: options[name] for name in ("size", "per_image", "cell")}

    def translation_options(self, size: int) -> dict[str, Any]:
        """What decides a redrawn image, beside its source, the labels and the model."""
        return {
            **self.settings().prompts.as_options(),
            "size": size,
            "steps": self.steps,
            "inversion_stride": self.inversion_stride,
            "start": self.start,
            "guidance": self.guidance,
        }


class MinedStudyParameters(MineParameters):
    """Study mining, against the known answer where there is one."""

    masks: Annotated[
        Address | None,
        Field(
            description="Folder of masks LABEL/STEM.png, the known answer for images "
            "LABEL/STEM.jpg; the dataset's truth.parquet, or else its boxes, if unset."
        ),
    ] = None
    shards: Annotated[
        int, Field(ge=-1, description="Dataset shards that are mined; -1 for all.")
    ] = -1


class TimestepStudyParameters(MinedStudyParameters):
    """Mine with typicality of one narrow range of timesteps at a time."""

    bins: Annotated[
        int, Field(ge=2, le=100, description="Equal parts that the 1000 timesteps are cut into.")
    ] = 10

    def ranges(self) -> list[tuple[float, float]]:
        """The bounds of the parts, as shares of the 1000 steps."""
        bounds = [round(part / self.bins, 3) for part in range(self.bins + 1)]
        return list(pairwise(bounds))


class NoiseStudyParameters(MinedStudyParameters):
    """Mine under draws of several seeds, free and with noise or timestep fixed."""

    seeds: Annotated[
        int, Field(ge=2, description="Seeds of the draws: the run's own and those after it.")
    ] = 6


class PatchSizeStudyParameters(MinedStudyParameters):
    """Cut the same maps into patches of several sizes."""

    sizes: Annotated[
        tuple[int, ...],
        Field(
            description="Sides of patches in pixels, beside the one that is mined; half of it, "
            "three quarters, one and a half times and twice it if empty."
        ),
    ] = ()

    def sides(self, size: int) -> list[int]:
        """The sides in pixels, ascending, for images of a shorter side of `size`."""
        mined = self.settings().patch_size or default_patch_size(size)
        wanted = self.sizes or tuple(
            side for part in SIZE_QUARTERS if 8 <= (side := mined * part // 4) <= size
        )
        if wrong := [side for side in wanted if not 8 <= side <= size]:
            raise InputError(
                f"sizes should be from 8 to the images' shorter side ({size} px), but "
                f"{wrong[0]} is not."
            )
        return sorted({mined, *wanted})


class ClusterStudyParameters(MinedStudyParameters):
    """Cluster the highest patches of each label in several ways."""

    ks: Annotated[
        tuple[int, ...],
        Field(
            description="Numbers of clusters, beside k; a quarter of it, half, and twice it if "
            "empty."
        ),
    ] = ()
    least_members: Annotated[
        tuple[int, ...],
        Field(min_length=1, description="Least members of a cluster, asked of HDBSCAN."),
    ] = (6, 3, 12)

    def numbers(self) -> list[int]:
        """The numbers of clusters, ascending."""
        wanted = self.ks or (self.k // 4, self.k // 2, 2 * self.k)
        if wrong := [number for number in (*self.ks, *self.least_members) if number < 2]:
            raise InputError(
                f"ks and least_members should be 2 or more, but {wrong[0]} is not: one cluster, or "
                "one member, is nothing to study."
            )
        return sorted({self.k, *(number for number in wanted if number >= 2)})

    def merged_from(self) -> int:
        """How many times as many groups are merged: as in mining, or three if it merges none."""
        return self.finer if self.finer > 1 else MERGED_FROM


class PredictabilityStudyParameters(MinedStudyParameters):
    """Predict labels from patches of images that the classifier has not seen."""

    patches: Annotated[
        int, Field(ge=2, description="Patches of each label and kind that are taken, at most.")
    ] = 200


class GeneratedStudyParameters(MinedStudyParameters):
    """Mine images that the model generates of each label, at several guidance scales."""

    guidance: Annotated[
        tuple[float, ...],
        Field(
            min_length=1,
            description="Scales of classifier-free guidance; 1 is the label's prompt alone.",
        ),
    ] = (1.0, 2.5, 5.0, 7.5)
    images: Annotated[
        int, Field(ge=2, description="Images that are generated of each label at each scale.")
    ] = 100
    sampling_steps: Annotated[
        int, Field(ge=1, le=1000, description="Steps of DDIM for each of them.")
    ] = 50
    patches: Annotated[
        int, Field(ge=2, description="Highest patches of each label that labels are told by.")
    ] = 200

    def generation_options(self, label: str, guidance: float, size: int) -> dict[str, Any]:
        """What decides the generated images of a label, beside the model."""
        return {
            **self.settings().prompts.as_options(),
            "label": label,
            "images": self.images,
            "guidance": guidance,
            "steps": self.sampling_steps,
            "size": size,
            "seed": self.seed,
        }


class StudyParameters(MinedStudyParameters):
    """Mine with the model as it is at several steps of one finetuning."""

    at: Annotated[
        tuple[int, ...],
        Field(
            description="Finetuning steps to mine at; before finetuning (0) always. An eighth, a "
            "quarter, half, three quarters and the end if empty."
        ),
    ] = ()

    def snapshots(self) -> list[int]:
        """The steps whose models are looked at, ascending, without 0."""
        steps = self.settings().finetune_steps
        wanted = sorted(set(self.at) - {0}) or sorted({steps * part // 8 for part in EIGHTHS} - {0})
        if not wanted or not 0 < wanted[0] <= wanted[-1] <= steps:
            raise InputError(
                f"at should be steps from 1 to finetune_steps ({steps}), but is {list(self.at)}; "
                "with no finetuning there is nothing to study."
            )
        return wanted


class CompareParameters(MinedStudyParameters):
    """Mine by typicality and by other methods, and measure what each finds and takes."""

    baselines: Annotated[
        tuple[Literal["doersch", "clip", "classifier", "random"], ...],
        Field(
            description="What typicality is compared with: doersch, clip, classifier, random; all "
            "of them, clip only with a CLIP model, if empty."
        ),
    ] = ()
    clip: Annotated[
        Address | None,
        Field(
            description="CLIP model that ranks patches by their likeness to the prompt: hub id, "
            "folder or URL, such as openai/clip-vit-large-patch14-336."
        ),
    ] = None
    doersch_seeds: Annotated[
        int, Field(ge=1, description="Random windows of a label that Doersch et al. starts from.")
    ] = 25_000
    doersch_kept: Annotated[
        int, Field(ge=1, description="Detectors of each label that Doersch et al. trains.")
    ] = 1000
    doersch_training: Annotated[
        Literal["fast", "reference"],
        Field(
            description="How those detectors are trained: reference, as in the code released with "
            "the paper, or fast, our own variant."
        ),
    ] = "fast"
    classifier_steps: Annotated[
        int, Field(ge=1, description="Training steps of the classifier, of 32 images.")
    ] = 500
    halvings: Annotated[
        int,
        Field(
            ge=0,
            description="How often the dataset is halved, to find patches on the parts too and see "
            "how the seconds grow.",
        ),
    ] = 2

    def compared(self) -> list[str]:
        """The baselines, in the order of the page."""
        wanted = self.baselines or [name for name in BASELINES if name != CLIP or self.clip]
        return [name for name in BASELINES if name in wanted]

    def classifier_options(self, size: int, cell: int) -> dict[str, Any]:
        """What decides the classifier, beside the images."""
        return {
            "steps": self.classifier_steps,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "size": size,
            "cell": cell,
            "seed": self.seed,
        }


class LocalizeParameters(TypicalityParameters):
    """Score typicality against boxes or masks of where in an image its label is."""

    masks: Annotated[
        Address | None,
        Field(
            description="Folder of masks LABEL/STEM.png, where the label of the image "
            "LABEL/STEM.jpg is; the dataset's truth.parquet, or else its boxes, if unset."
        ),
    ] = None


class NightlyParameters(MineParameters):
    """Mine what has come to a dataset since last night, and publish what is new."""

    gpu_hour_price: Annotated[
        float, Field(ge=0, description="What a GPU hour costs; 0 to show no cost.")
    ] = 0.0
    currency: Annotated[
        str, Field(max_length=12, description="Of the price, as it is to be shown.")
    ] = "EUR"
    webhook: Annotated[
        str | None,
        Field(
            description="Name of the Prefect Secret block with the address that gets each night's "
            "message, in Slack's format. Never the address itself.",
            pattern="^[a-z0-9-]+$",
        ),
    ] = None

    def mining(self) -> MineParameters:
        """Those of them that `mine` takes."""
        return MineParameters(**{name: getattr(self, name) for name in MineParameters.model_fields})


class WatchParameters(BaseModel):
    """Look for what has come to the dataset of a nightly deployment, and start that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deployment: Annotated[
        str,
        Field(description="FLOW/NAME of the deployment that is started; its dataset is watched."),
    ] = "nightly/nightly"
    soon: Annotated[
        int,
        Field(ge=0, description="Minutes: a run scheduled to start within them is waited for."),
    ] = 30


class GcParameters(BaseModel):
    """Remove what nobody needs any more from a root."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[Address, Field(description="Folder or URL of the results.")]
    older_than: Annotated[
        str,
        Field(
            pattern=r"^\d{1,9}[smhdw]$",
            description="Age from which it can go: a number with s, m, h, d or w. Give more than a "
            "running `mine` needs to store one unit.",
        ),
    ] = "7d"
    delete: Annotated[bool, Field(description="Remove it; else it is only listed.")] = False


def run_title(dataset_name: str, root: str) -> str:
    """What tells a run from others in a list: the dataset and where its results go."""
    return f"{dataset_name} → {root.rstrip('/').rpartition('/')[2]}"


def default_patch_size(size: int) -> int:
    """64 px at 512 px and 50 px at 256 px, as the authors used; 3/16 of the side below."""
    if size >= 512:
        return 64
    return 50 if size >= 256 else max(8, 3 * size // 16)


def _first(*values: Any) -> Any:
    """The first value that is set, None if none is."""
    return next((value for value in values if value is not None), None)
