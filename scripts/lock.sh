#!/usr/bin/env bash
# Resolves requirements/*.lock for Python 3.11 to 3.13 on every platform, with hashes and without index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate)
"${compile[@]}" requirements/bootstrap.in -o requirements/bootstrap.lock >/dev/null
extras=(--extra policy --extra lerobot --extra video --extra tracking --extra pipelines --extra docker --extra dev)
"${compile[@]}" "${extras[@]}" pyproject.toml -o requirements/all.lock >/dev/null
# gym-aloha gives asset files only: its own requirements are those of its simulation, which the oracle lock holds.
"${compile[@]}" --no-deps requirements/assets.in -o requirements/assets.lock >/dev/null
"${compile[@]}" -c requirements/all.lock --extra oracle pyproject.toml -o requirements/oracle.lock >/dev/null
# The images. Each holds a part of all.lock; of kfp they need only what runs a component, which requires nothing.
own=("${compile[@]}" -c requirements/all.lock)
"${own[@]}" pyproject.toml -o requirements/cpu.lock >/dev/null
"${own[@]}" --extra policy --extra video --extra tracking pyproject.toml -o requirements/gpu.lock >/dev/null
"${own[@]}" --no-deps requirements/executor.in -o requirements/executor.lock >/dev/null
.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' |
  "${own[@]}" - -o requirements/build.lock >/dev/null
