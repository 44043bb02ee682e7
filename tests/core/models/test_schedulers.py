from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from diffmining_core.errors import InputError
from diffmining_core.models import tiny
from diffmining_core.models.files import COMPONENTS, find_model
from diffmining_core.models.pipelines import load_scheduler
from diffmining_core.models.schedulers import SCHEDULERS, check_scheduler

EVERY_CLASS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the built-in pipeline, for another scheduler."""
    folder = tmp_path / "model"
    for name in COMPONENTS:
        shutil.copytree(Path(tiny.__file__).parent / name, folder / name)
    return folder


def write(model: Path, config: dict[str, Any]) -> None:
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def own_scheduler(name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """An instance of one of diffusers' classes."""
    if name == "DPMSolverSDEScheduler":  # its module imports a package that only sampling needs
        monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
        module = import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
        return getattr(module, name)(**settings)
    return getattr(diffusers, name)(**settings)


def refusal(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_model(str(model))
    message = str(caught.value)
    assert "\n" not in message
    assert f"scheduler/scheduler_config.json of model {model}" in message
    return message


def test_the_schedulers_are_those_of_stable_diffusion_except_edms() -> None:
    compatible = {scheduler.name for scheduler in KarrasDiffusionSchedulers}
    assert set(SCHEDULERS) == compatible - {"EDMEulerScheduler"}


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_is_that_of_the_scheduler_itself(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, beta_schedule: str
) -> None:
    own = own_scheduler(name, monkeypatch, **{**STABLE_DIFFUSION, "beta_schedule": beta_schedule})
    assert own.config.prediction_type == "epsilon"  # a configuration may leave the default out
    for prediction_type in ("epsilon", "v_prediction"):
        own.register_to_config(prediction_type=prediction_type)
        own.save_config(model / "scheduler")
        found = load_scheduler(find_model(str(model)))
        torch.testing.assert_close(found.alphas_cumprod, own.alphas_cumprod, atol=1e-6, rtol=1e-6)
        assert found.config.prediction_type == prediction_type
        assert not found.config.clip_sample


@pytest.mark.parametrize("name", sorted({*EVERY_CLASS, "MyScheduler"} - {*SCHEDULERS}))
def test_every_other_scheduler_is_refused_by_name(model: Path, name: str) -> None:
    write(model, {"_class_name": name, **STABLE_DIFFUSION})
    assert f"but names '{name}'; give a model trained like Stable" in refusal(model)


@pytest.mark.parametrize("name", [None, ["DDPMScheduler"], {}])
def test_a_scheduler_without_a_class_is_refused(model: Path, name: object) -> None:
    write(model, {"_class_name": name, **STABLE_DIFFUSION})
    assert f"but names {name!r};" in refusal(model)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("prediction_type", "sample"),
        ("prediction_type", "flow_prediction"),
        ("prediction_type", None),
        ("rescale_betas_zero_snr", True),
        ("thresholding", True),
        ("trained_betas", [0.1] * 1000),
        ("use_flow_sigmas", True),
        ("use_dynamic_shifting", True),
        ("timestep_type", "continuous"),
        ("variance_type", "learned_range"),
        ("num_train_timesteps", 4000),
        ("beta_schedule", "exp"),
        ("beta_schedule", "sigmoid"),
        ("beta_schedule", "laplace"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(
    model: Path, setting: str, value: object
) -> None:
    write(model, {"_class_name": "EulerDiscreteScheduler", **STABLE_DIFFUSION, setting: value})
    message = refusal(model)
    assert f"should have {setting} " in message
    assert message.endswith(
        "which is not implemented; give a model trained like Stable Diffusion 1.x or 2.x."
    )


@pytest.mark.parametrize("setting", STABLE_DIFFUSION)
def test_a_noise_schedule_that_is_not_stated_is_not_guessed(model: Path, setting: str) -> None:
    stated = {name: value for name, value in STABLE_DIFFUSION.items() if name != setting}
    write(model, {"_class_name": "HeunDiscreteScheduler", **stated})
    assert setting in refusal(model)


@pytest.mark.parametrize("value", ["0.1", True, 0.0, 1.5, float("nan")])
def test_betas_that_are_no_shares_are_refused(model: Path, value: object) -> None:
    write(model, {"_class_name": "DDPMScheduler", **STABLE_DIFFUSION, "beta_end": value})
    assert f"beta_end, both between 0 and 1, but has 0.00085 and {value!r}" in refusal(model)


def test_settings_of_sampling_alone_are_passed_over() -> None:
    check_scheduler(
        {
            "_class_name": "DPMSolverMultistepScheduler",
            **STABLE_DIFFUSION,
            "use_karras_sigmas": True,
            "final_sigmas_type": "sigma_min",
            "algorithm_type": "sde-dpmsolver++",
            "timestep_spacing": "trailing",
            "variance_type": None,
        },
        "any",
    )
