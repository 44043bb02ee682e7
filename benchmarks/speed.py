"""How fast, against the plain research loop: everything on this machine, table and plot.

    python -m benchmarks.speed                      # everything
    python -m benchmarks.speed --model full         # at full size on a CPU too
    python -m benchmarks.speed --parts finetuning   # one part anew, the others as they were
    python -m benchmarks.speed --draw               # only the plot, of all tables

On a GPU the model has the shapes of Stable Diffusion 1.5 and random weights, on which speed does
not depend; on a CPU it is the tiny pipeline. The table goes to `benchmarks/results/`, named by the
device, and the plot there shows all tables. On a GPU machine torch, diffusers, transformers, peft,
safetensors, numpy and pillow suffice; what needs more says so in its row.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import tempfile
from pathlib import Path

import torch

from benchmarks.speed_bench import Bench, Settings, settings_for
from benchmarks.speed_chart import draw
from benchmarks.speed_parts import PARTS, measure
from benchmarks.speed_table import RESULTS, Row, Table, read_table, read_tables


def main() -> None:
    """Measure, save the table, draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=["tiny", "full"], help="full on CUDA, else tiny")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="only these, anew")
    parser.add_argument("--quick", action="store_true", help="very small: does everything work?")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the plot")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    if arguments.quick and arguments.results == RESULTS:
        parser.error("a quick run's numbers say nothing of speed: give them another --results")
    if not arguments.draw:
        device = torch.device(arguments.device)
        model = arguments.model or ("full" if device.type == "cuda" else "tiny")
        run(settings_for(device, model, arguments.quick), arguments.parts, arguments.results)
    draw(read_tables(arguments.results), arguments.results)


def run(settings: Settings, parts: list[str] | None, results: Path) -> None:
    """Measure the parts and keep the table after each of them."""
    name, machine = table_name(settings), machine_name(settings.device)
    path = results / f"{name}.json"
    rows: list[Row] = []
    if parts and path.exists() and (saved := read_table(path)).machine == machine:
        rows = saved.rows
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder))
        for part in parts or PARTS:
            rows = [*(row for row in rows if row.part != part), *measure(part, bench)]
            rows.sort(key=lambda row: list(PARTS).index(row.part))
            table = Table(machine, facts(bench), rows)
            table.save(results, name)
    print(f"\n{table.markdown()}")


def table_name(settings: Settings) -> str:
    """`speed-cpu`, `speed-cpu-full`, `speed-nvidia-h200`."""
    if settings.device.type == "cpu":
        return "speed-cpu" if settings.model == "tiny" else "speed-cpu-full"
    words = re.findall("[a-z0-9]+", torch.cuda.get_device_name(settings.device).lower())
    return "-".join(["speed", *words, *(["tiny"] if settings.model == "tiny" else [])])


def machine_name(device: torch.device) -> str:
    """What the table is of, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    text = described.read_text() if described.exists() else ""
    model = re.search(r"model name\s*: (.+)", text)
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} processors"


def facts(bench: Bench) -> dict[str, str]:
    """What the numbers depend on, and the product that the shares are of."""
    settings = bench.settings
    ours = str(settings.precision).removeprefix("torch.")
    on_gpu = settings.device.type == "cuda"
    plain = "float16 by autocast" if on_gpu else "float32"
    full = "Stable Diffusion 1.5's shapes, random weights"
    return {
        "model": full if settings.model == "full" else "the tiny built-in pipeline",
        "precision": f"{plain} in the plain loop, {ours} here",
        "matrix product": f"{bench.product:.3g} TFLOP/s in {ours}, side {settings.product_side:,}",
        "rounds": f"{settings.rounds}, the plain loop and ours in turn; medians",
        "memory": "of tensors on the GPU, both pipelines among them"
        if on_gpu
        else "of the process",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
