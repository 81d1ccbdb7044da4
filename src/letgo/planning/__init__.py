"""What a run will take, before anything is loaded: memory, time and disk, from its config, its data and the model's
config alone.

    plan = letgo.plan(letgo.read_config("run.yaml"))
    print(plan.text())

`plan_devices` tells the memory of each of several devices: what DDP or FSDP2 leave there, and whether that fits.

Memory is what a step of the run's own objective keeps alive, with the run's own adapters and frozen weights, followed
on tensors without values (`letgo.planning.tracing`); what the optimizer adds is measured on a toy. So no formula has
to know an architecture, an objective or an optimizer by name.
"""

from letgo.planning.devices import DevicesPlan as DevicesPlan
from letgo.planning.devices import plan as plan
from letgo.planning.devices import plan_devices as plan_devices
from letgo.planning.report import Phase as Phase
from letgo.planning.report import Plan as Plan

__all__ = ["DevicesPlan", "Phase", "Plan", "plan", "plan_devices"]
