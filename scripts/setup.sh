#!/usr/bin/env bash
# Makes .venv with the locked dependencies. Safe to repeat: does nothing when the locks are the ones installed.
#   scripts/setup.sh            what `make campaign` needs
#   scripts/setup.sh --oracle   also gym_aloha's own simulation, for the parity test (Python below 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."

oracle=no
[ "${1:-}" = "--oracle" ] && oracle=yes

# --- prerequisites: Debian's and Ubuntu's names -------------------------------------------------------------------
missing=()
command -v git >/dev/null || missing+=(git)
command -v make >/dev/null || missing+=(make)

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  if [ -n "${PYTHON:-}" ] || command -v python3 >/dev/null; then
    echo "error: ${PYTHON:-python3} is not Python 3.11, 3.12 or 3.13: name one with PYTHON=/path/to/python3.12." >&2
    exit 2
  fi
  missing+=(python3 python3-venv)
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=("python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
fi

has_library() { "${python:-python3}" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }
if [ -n "$python" ]; then
  has_library libEGL.so.1 || missing+=(libegl1)
  has_library libGL.so.1 || missing+=(libgl1)
  # A GPU driver brings its own vendor file; without one, Mesa draws in software.
  vendors=$(find /usr/share/glvnd/egl_vendor.d /etc/glvnd/egl_vendor.d -name '*.json' 2>/dev/null || true)
  [ -n "$vendors" ] || missing+=(libegl-mesa0 libgl1-mesa-dri)
else
  missing+=(libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri)
fi

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -z "${PREREQUISITES_INSTALLED:-}" ]; then
    echo "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    # Once: what is still missing after this is said, not installed again.
    PREREQUISITES_INSTALLED=yes exec "$0" "$@"
  fi
  echo "error: prerequisites are missing; install them with:  sudo apt install ${missing[*]}" >&2
  exit 2
fi

# --- the environment ----------------------------------------------------------------------------------------------
stamp="$(cat requirements/*.lock pyproject.toml | sha256sum | cut -c1-16) $("$python" --version)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
  echo "making .venv with $("$python" --version): PyTorch with its CUDA libraries is a 4.7 GB install, once"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
  install=(.venv/bin/uv pip install --python .venv/bin/python --require-hashes)
  "${install[@]}" -r requirements/all.lock
  "${install[@]}" --no-deps -r requirements/assets.lock
  .venv/bin/uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
  echo "$stamp" > .venv/installed
fi

if [ $oracle = yes ] && [ "$(cat .venv/oracle 2>/dev/null)" != "$stamp" ]; then
  if .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then
    .venv/bin/uv pip install -q --python .venv/bin/python --require-hashes -r requirements/oracle.lock
    echo "$stamp" > .venv/oracle
  else
    echo "note: gym_aloha's simulation needs Python below 3.13, so the parity test will be skipped"
  fi
fi
