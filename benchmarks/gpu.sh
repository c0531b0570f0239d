#!/usr/bin/env bash
# The full-size table on a GPU: base tower, 22 M head, batch 64, and what 50,000 steps take.
#   benchmarks/gpu.sh            uses .venv/bin/python, or the interpreter in PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: PyTorch sees no CUDA device: run this on a machine with a GPU and its driver." >&2
  exit 1
fi
"$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)'

# torch.compile needs a C compiler for Triton's launcher; where there is none, its rows are left out.
also=(bfloat16)
if command -v "${CC:-gcc}" >/dev/null; then also+=(compile bfloat16+compile); fi
"$python" benchmarks/train_step.py --device cuda --heads base --rounds 50 --also "${also[@]}"
"$python" benchmarks/encode_once.py --device cuda --heads base --rounds 50 --encoding-rounds 10
"$python" benchmarks/control_latency.py --device cuda --rounds 300 --tower-rounds 100
