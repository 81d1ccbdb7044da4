"""letgo plan: what a run will take, before anything is loaded, on one device or on many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from letgo.cli.common import JsonFlag, app, print_json


@app.command()
def plan(
    config: Annotated[Path, Argument(help="A run's YAML.")],
    assignments: Annotated[list[str] | None, Option("--set", help="key=value; repeat.")] = None,
    flops: Annotated[float | None, Option("--flops", help="FLOP/s of a device to take times with.")] = None,
    measure: Annotated[
        bool, Option("--measure", help="Measure FLOP/s with two layers of the model, for some seconds.")
    ] = False,
    devices: Annotated[int | None, Option("--devices", help="Plan for so many devices, a process each.")] = None,
    strategy: Annotated[str | None, Option("--strategy", help="single, ddp or fsdp2; by default the YAML's.")] = None,
    device_memory: Annotated[str | None, Option("--device-memory", help="Of a device, e.g. 80GB: does it fit?")] = None,
    device: Annotated[
        str | None, Option("--device", help="Of which kind they are, cpu or cuda; this machine's by default.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell a run's memory, time and disk before it starts, on one device or many; no weights are read."""
    from letgo.training.settings import check_early

    check_early(config, assignments or ())
    from letgo.core.progress import quiet_libraries
    from letgo.core.sizes import read_size
    from letgo.planning import DevicesPlan, Plan, plan_devices
    from letgo.planning import plan as make_plan
    from letgo.training.config import read_config

    quiet_libraries()
    memory = None if device_memory is None else read_size(device_memory, "--device-memory")
    read = read_config(config, assignments or ())
    made: Plan | DevicesPlan
    if any(value is not None for value in (devices, strategy, device_memory, device)):
        count = 1 if devices is None else devices
        made = plan_devices(read, count, strategy, device=device, memory=memory, flops=flops, measure=measure)
    else:
        made = make_plan(read, flops=flops, measure=measure)
    print_json(made.as_dict()) if as_json else typer.echo(made.text())
