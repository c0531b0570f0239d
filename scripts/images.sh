#!/usr/bin/env bash
# Builds the images that the steps of a campaign run in; a change of the code alone takes seconds.
#   scripts/images.sh             roboimi-cpu and roboimi-gpu
#   scripts/images.sh cpu         one of them
#   scripts/images.sh base        a base image by debootstrap, where there is no registry (root, Debian or Ubuntu)
# BASE_IMAGE=NAME@sha256:...      build on this base (default: roboimi-base:bookworm, made when it is missing)
# IMAGE_PREFIX=registry/team/     put before the images' names
# BUILD_NETWORK=host              where the engine has no network of its own
# DOCKER=/usr/bin/docker          another client
# The package index and the certificates are those of this machine: UV_*, PIP_* and SSL_CERT_FILE.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=bookworm
own_base=roboimi-base:$suite
base=${BASE_IMAGE:-$own_base}
docker=${DOCKER:-docker}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

stop() {
  echo "error: $1" >&2
  exit 2
}

make_base() {
  [ "$(id -u)" = 0 ] || stop "a base image is made by root: run it with sudo, or name your own with BASE_IMAGE."
  command -v debootstrap >/dev/null || stop "debootstrap is missing: sudo apt install debootstrap, or set BASE_IMAGE."
  local root
  root=$(mktemp -d)
  # It becomes the / of the image, which every user must be able to enter.
  chmod 755 "$root"
  echo "making $own_base: a few minutes"
  bootstrap "$root" >"$root.log" 2>&1 || {
    rm -rf "$root"
    stop "debootstrap failed, its log is $root.log and ends with: $(tail -n 1 "$root.log")"
  }
  tar -C "$root" --numeric-owner -c . | "$docker" import - $own_base >/dev/null
  rm -rf "$root" "$root.log"
  echo "made $own_base"
}

# bootstrap FOLDER: a small Debian with Python, as of today.
bootstrap() {
  local root=$1 file
  debootstrap --variant=minbase --include=ca-certificates,python3 $suite "$root" || return
  # The package sources of this machine, where it is the same Debian: security updates are among them.
  if grep -qs "VERSION_CODENAME=$suite" /etc/os-release; then
    for file in sources.list sources.list.d/debian.sources; do
      [ ! -f "/etc/apt/$file" ] || cp "/etc/apt/$file" "$root/etc/apt/$file"
    done
    [ -f /etc/apt/sources.list ] || rm -f "$root/etc/apt/sources.list"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    chroot "$root" sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get upgrade -y -qq' || return
  fi
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root"/var/log/* "$root"/usr/share/{doc,man,info,locale}/*
  : >"$root/etc/resolv.conf"
}

build() {
  local name=${IMAGE_PREFIX:-}roboimi-$1:$version quiet=(-q) size
  [ ! -t 2 ] || quiet=()
  DOCKER_BUILDKIT=1 "$docker" build "${quiet[@]}" --network "${BUILD_NETWORK:-default}" -f images/Dockerfile --target "$1" \
    --build-arg BASE_IMAGE="$base" --build-arg VERSION="$version" \
    --build-arg REVISION="$revision" --build-arg SOURCE="$source" \
    "${secrets[@]}" -t "$name" . >/dev/null || stop "$name was not built; what is wrong is said above."
  size=$("$docker" image inspect -f '{{.Size}}' "$name")
  echo "built $name, $((size / 1000000)) MB, code $revision"
}

for target in "$@"; do
  [[ $target = cpu || $target = gpu || $* = base ]] || stop "there is no image '$target': choose cpu, gpu or base."
done
command -v "$docker" >/dev/null || stop "there is no docker client: install Docker Engine and its buildx, or name a client with DOCKER."
"$docker" version >/dev/null 2>&1 || stop "no Docker engine answers: start dockerd, or join the group docker."
client=$("$docker" version -f '{{.Client.Version}}')
# Clients from 23 on build with a plugin, which Debian and Ubuntu have in a package of its own.
[ "${client%%.*}" -lt 23 ] || "$docker" buildx version >/dev/null 2>&1 ||
  stop "the docker client $client lacks buildx: install the package docker-buildx, or name another client with DOCKER."

if [ "${1:-}" = base ]; then
  make_base
  exit
fi
if ! "$docker" image inspect "$base" >/dev/null 2>&1 && [ "$base" = $own_base ]; then
  make_base
fi
revision=$(git describe --always --dirty '--exclude=*' --abbrev=40 2>/dev/null) ||
  stop "the code's git revision is not known here: build the images in a git checkout."
# An address may hold a password.
source=$(git config --get remote.origin.url | sed 's#//[^@/]*@#//#' || true)
source=${source:-unknown}
secrets=()
index=$(mktemp)
trap 'rm -f "$index"' EXIT
# Those that say where packages come from; others name folders of this machine.
export -p | grep -E '^declare -x (UV|PIP)_[A-Z_]*(INDEX|HOST|TIMEOUT|RETRIES|PROXY)[A-Z_]*=' |
  sed 's/^declare -x/export/' >"$index" || true
secrets+=(--secret "id=index,src=$index")
certificates=${SSL_CERT_FILE:-${PIP_CERT:-}}
if [ -n "$certificates" ]; then
  [ -f "$certificates" ] || stop "the certificates $certificates are no file: correct SSL_CERT_FILE, or unset it."
  secrets+=(--secret "id=certificates,src=$certificates")
fi
[ $# -gt 0 ] || set -- cpu gpu
for target in "$@"; do build "$target"; done
