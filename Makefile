# make campaign   record demonstrations, then the whole campaign on this machine; again: goes on, or adopts what is done
# make test       the tests
# make faults     the fault campaigns at their full length: kills, outages, damage, zombies (about an hour)
# make e2e        campaigns on a real Kubeflow Pipelines, killed and retried (KFP_HOST=...; see tests/e2e/site.py)
# make images     the two images of the steps, by this machine's Docker engine; again after an edit: seconds
# Options: DATASET=path (your own episodes), ARGS="--steps 500 ..." (see .venv/bin/python -m pipelines run --help)

SHELL := /bin/bash
python := .venv/bin/python
dataset_option := $(if $(DATASET),--dataset "$(DATASET)")

.PHONY: campaign test faults e2e images lint lock setup tools clean

campaign: setup
	@$(python) -m pipelines run $(dataset_option) $(ARGS)

test: setup lint tools
	@OMP_NUM_THREADS=1 $(python) -m pytest -q -n 2 --dist loadfile $(ARGS)

faults: setup tools
	@OMP_NUM_THREADS=1 $(python) -m pytest -q -m faults --timeout 0 $(ARGS)

e2e: setup
	@$(python) -m pytest -v -s -m e2e --timeout 0 tests/e2e $(ARGS)

images:
	@scripts/images.sh $(ARGS)

lint: setup
	@$(python) -m ruff check -q . && $(python) -m ruff format -q --check .

setup:
	@scripts/setup.sh

# Servers and programs that tests use (MinIO, toxiproxy, kustomize, kubeconform); needs Go, and says so where it is not there.
tools:
	@scripts/tools.sh

# Resolve the dependencies anew; the locks carry hashes and no index address.
lock: setup
	@scripts/lock.sh

clean:
	rm -rf outputs datasets .pytest_cache .ruff_cache
