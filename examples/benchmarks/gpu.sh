#!/bin/sh
# Measure training and answering on this machine's GPU: speed, memory, a killed and resumed run, both ways of attention.
#
#     sh examples/benchmarks/gpu.sh > gpu.json          # at most five minutes; progress goes to standard error
#     sh examples/benchmarks/gpu.sh --tiny              # on a CPU, in seconds: a trial of the script
#
# Weights are random, so nothing is downloaded. It uses the torch that is installed, and ecgbyte from this checkout.
# Where bitsandbytes (for QLoRA) cannot be installed, put it beside this script:
#
#     pip install --no-deps --target examples/benchmarks/packages bitsandbytes
set -eu
here=$(cd "$(dirname "$0")" && pwd)
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
ln -s "$here/../../kernels" "$links/ecgbyte_kernels"
export PYTHONPATH="$here/../..:$links:$here/packages${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
"${PYTHON:-python}" "$here/gpu.py" "$@"
