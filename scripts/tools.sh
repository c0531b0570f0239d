#!/usr/bin/env bash
# What tests run besides Python: MinIO, and toxiproxy for faults of the network; kustomize and kubeconform, with the schemas
# of a Kubernetes version, for the manifests.
# Takes programs on PATH, else builds pinned versions with Go into .tools/bin, once (MinIO: about 3 minutes on 2 cores).
#   scripts/tools.sh              what the tests use; says in one line what cannot be had (those tests are skipped)
#   scripts/tools.sh --required   fails instead
#   scripts/tools.sh --benchmark  also MinIO's client mc, which benchmarks/transfer.py is measured against
set -euo pipefail
cd "$(dirname "$0")/.."

# MinIO's community edition has no releases any more: this is its newest commit that the module proxy has.
minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
mc=github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9
toxiproxy=github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0
kustomize=sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
kubeconform=github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0
# Its module carries the API's OpenAPI document, from which the schemas are made.
kubernetes=v1.34.4

required=no
wanted=(minio toxiproxy-server kustomize kubeconform kubernetes-schemas)
for option in "$@"; do
  case $option in
    --required) required=yes ;;
    --benchmark) wanted+=(mc) ;;
    *) echo "error: $option is unknown: see the head of scripts/tools.sh." >&2; exit 2 ;;
  esac
done

bin=$PWD/.tools/bin
schemas=$PWD/.tools/kubernetes-schemas
has() {
  case $1 in
    kubernetes-schemas) [ "$(cat "$schemas/VERSION" 2>/dev/null)" = $kubernetes ] ;;
    *) [ -x "$bin/$1" ] || command -v "$1" >/dev/null ;;
  esac
}

build() { # NAME MODULE [NAME THAT GO GIVES IT]
  echo "building $1 with $(go env GOVERSION), once"
  mkdir -p "$bin"
  # Built beside its place and renamed: a build cut short leaves nothing that looks finished.
  local partial
  partial=$(mktemp -d "$bin/.building-XXXXXX")
  if GOBIN=$partial CGO_ENABLED=0 go install -trimpath -ldflags="-s -w" "$2" 2>"$partial/log"; then
    mv "$partial/${3:-$1}" "$bin/$1"
    rm -rf "$partial"
  else
    tail -n 5 "$partial/log" >&2
    rm -rf "$partial"
    return 1
  fi
}

make_schemas() {
  echo "making the schemas of Kubernetes $kubernetes, once"
  local module
  # The line of the answer that says where the module was unpacked: "Dir": "/...",
  module=$(go mod download -json k8s.io/kubernetes@$kubernetes | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p') &&
    python3 scripts/kubernetes_schemas.py "$module/api/openapi-spec/swagger.json" "$schemas.part" &&
    echo $kubernetes >"$schemas.part/VERSION" &&
    rm -rf "$schemas" &&
    mv "$schemas.part" "$schemas"
}

missing=()
for tool in "${wanted[@]}"; do
  has "$tool" && continue
  if ! command -v go >/dev/null; then
    missing+=("$tool")
    continue
  fi
  case $tool in
    minio) build minio "$minio" ;;
    toxiproxy-server) build toxiproxy-server "$toxiproxy" server ;;
    kustomize) build kustomize "$kustomize" ;;
    kubeconform) build kubeconform "$kubeconform" ;;
    kubernetes-schemas) make_schemas ;;
    mc) build mc "$mc" ;;
  esac || missing+=("$tool")
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ $required = yes ]; then
    echo "error: ${missing[*]} cannot be had: put them on PATH, or install Go 1.24 or newer and run this again." >&2
    exit 2
  fi
  echo "note: ${missing[*]} cannot be had (no Go, or its build failed), so the tests that need them are skipped"
fi
