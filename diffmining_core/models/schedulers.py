"""Which noise schedules the arithmetic here is right for; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffmining_core.errors import InputError

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Samplers for models trained with DDPM's noise, x_t = sqrt(ā) x_0 + sqrt(1 - ā) ε.

diffusers exchanges them for one another in Stable Diffusion (KarrasDiffusionSchedulers); only
EDM's is missing here.
"""

_REQUIRED = {
    "num_train_timesteps": (1000,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}
"""Implemented values of settings that must be stated, as the classes' defaults differ."""

_OPTIONAL = {
    "prediction_type": ("epsilon", "v_prediction"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "timestep_type": ("discrete",),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None),
}
"""Implemented values of other settings, the first being the default.

Settings that are not listed affect only sampling. A learned variance doubles the UNet's output.
"""


def check_scheduler(config: Mapping[str, Any], model: str) -> None:
    """InputError unless a scheduler's configuration describes DDPM's noise, completely.

    `model` is the model's name, for the message.
    """
    where = f"scheduler/scheduler_config.json of model {model}"
    remedy = "give a model trained like Stable Diffusion 1.x or 2.x"
    if (name := config.get("_class_name")) not in SCHEDULERS:
        raise InputError(
            f"{where} should name a scheduler for models trained with DDPM's noise (_class_name), "
            f"such as DDPMScheduler, PNDMScheduler or EulerDiscreteScheduler, but names {name!r}; "
            f"{remedy}."
        )
    for setting, allowed in {**_REQUIRED, **_OPTIONAL}.items():
        default = allowed[0] if setting in _OPTIONAL else None
        if (value := config.get(setting, default)) not in allowed:
            raise InputError(
                f"{where} should have {setting} {' or '.join(map(repr, allowed))}, but has "
                f"{value!r}, which is not implemented; {remedy}."
            )
    betas = [config.get(name) for name in ("beta_start", "beta_end")]
    if not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
        raise InputError(
            f"{where} should have beta_start and beta_end, both between 0 and 1, but has "
            f"{betas[0]!r} and {betas[1]!r}; write those that the model was trained with (Stable "
            "Diffusion's are 0.00085 and 0.012)."
        )
