from __future__ import annotations

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.slow  # builds five networks, though without memory for their weights
def test_what_the_benchmark_builds_has_the_published_numbers_of_parameters() -> None:
    benchmark = runpy.run_path(str(REPOSITORY / "benchmarks" / "full_size.py"))
    assert benchmark["counts"]() == {
        "1.5": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        "2.1": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    }
