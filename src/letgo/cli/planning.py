"""letgo plan: what a run will take, before anything is loaded, on one device or on many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from letgo.cli.common import JsonFlag, app, print_json, yaml_argument


@app.command()
def plan(
    config: Annotated[Path, yaml_argument("A run's YAML.")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeat.")] = None,
    flops: Annotated[float | None, typer.Option("--flops", help="FLOP/s of a device to take times with.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure FLOP/s with two layers of the model, for some seconds.")
    ] = False,
    devices: Annotated[int | None, typer.Option("--devices", help="Plan for so many devices, a process each.")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="single, ddp, fsdp2, zero2 or zero3; ddp by default.")
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", help="Of a device, such as 80GB: does it fit?")
    ] = None,
    per_node: Annotated[
        int | None, typer.Option("--processes-per-node", help="Devices of a node; the machine's by default.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option("--machine", help="h100, a100 or cpu: rates and bandwidths to plan with.")
    ] = None,
    overlap: Annotated[
        float, typer.Option("--overlap", min=0.0, max=1.0, help="Share of communication hidden where it can be.")
    ] = 0.0,
    scale_to: Annotated[
        int | None, typer.Option("--scale-to", min=1, help="A table of steps on up to so many devices.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell a run's memory, time and disk before it starts, on one device or many; no weights are read."""
    from letgo.core.progress import quiet_libraries
    from letgo.planning import plan as make_plan
    from letgo.planning import plan_devices
    from letgo.planning.sizes import read_size
    from letgo.training.config import read_config

    quiet_libraries()
    memory = None if device_memory is None else read_size(device_memory, "--device-memory")
    many = any(value is not None for value in (devices, strategy, device_memory, per_node, machine, scale_to))
    read = read_config(config, assignments or ())
    if not many:
        made = make_plan(read, flops=flops, measure=measure)
        if as_json:
            print_json(made.as_dict())
        else:
            typer.echo(made.text())
        return
    spread = plan_devices(
        read,
        devices or 1,
        strategy or ("ddp" if (devices or 1) > 1 or scale_to else "single"),
        machine=machine,
        memory=memory,
        per_node=per_node,
        flops=flops,
        measure=measure,
        overlap=overlap,
    )
    if as_json:
        print_json(spread.as_dict(scale_to))
    else:
        typer.echo(spread.text(scale_to))
