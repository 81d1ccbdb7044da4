#!/bin/sh
# What only a machine with a GPU can show, into the folder that is given:
#   sh perf/gpu.sh results/gpu
# The whole job on the shipped model (half a minute), then the optimizers' steps at real size, each against two forward
# passes in the same run. DEVICE=cpu SHAPE=quick tries the script itself on a machine without one.
set -eu
out=${1:?"give a folder for the results: sh perf/gpu.sh FOLDER"}
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
shape=${SHAPE:-135m}
mkdir -p "$out"
if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv >"$out/gpu.csv"
fi
"$python" -m letgo demo --tiny --output "$out/demo"
"$python" perf/optimizer_step.py --device "$device" --shape "$shape" --json "$out/optimizer_step.json"
