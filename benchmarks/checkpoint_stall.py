"""How long a checkpoint keeps the training, against the bare memory copy of its bytes.

    python benchmarks/checkpoint_stall.py --rounds 60

The policy of the campaign at base size (head, optimiser, averages), on the CPU. Each round: a bare copy of all its
tensors into memory that was touched before, then the loop's own snapshot and hand-over, then (not timed) the writing,
hashing and committing in the background, as it is between two checkpoints of a training. `--busy` does not wait for the
background and so times both while the checkpoint before is being written.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import synthetic
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.writer import CheckpointWriter


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--busy", action="store_true", help="do not wait for the background between rounds")
    parser.add_argument("--folder", type=Path, help="where the store is; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = synthetic.trainer(synthetic.agent(["backbone=privileged_state"]), {})
    _fill_moments(trainer.optimizer)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = CheckpointWriter(Checkpoints(open_store(folder), "trainings/stall", keep=2, epoch=1))
        bare: dict[str, torch.Tensor] = {}
        stalls, copies, written = [], [], []
        for turn in range(-3, options.rounds):
            trainer.step += 1
            live = _live(trainer)
            bare = bare or {name: torch.empty_like(tensor) for name, tensor in live.items()}
            started = time.perf_counter()
            for name, tensor in live.items():
                bare[name].copy_(tensor)
            copy = time.perf_counter() - started
            started = time.perf_counter()
            snapshot = trainer.snapshot("", writer.buffers)
            writer.submit(snapshot)
            stall = time.perf_counter() - started
            began = time.perf_counter()
            while not options.busy and (writer.committed or (0,))[0] != trainer.step:
                time.sleep(0.01)
            if options.busy:
                time.sleep(0.2)
            if turn >= 0:
                stalls.append(1e3 * stall)
                copies.append(1e3 * copy)
                written.append(time.perf_counter() - began)
        writer.finish(300)
    size = sum(tensor.nbytes for tensor in live.values())
    print(json.dumps({"rounds": options.rounds, "busy": options.busy, "megabytes": round(size / 1e6, 1)}))
    for name, values in (("stall ms", stalls), ("bare copy ms", copies), ("committed after s", written)):
        print(json.dumps({name: _spread(values)}))
    print(json.dumps({"p99 ratio": round(_quantile(stalls, 0.99) / _quantile(copies, 0.99), 3)}))
    print(json.dumps({"p50 ratio": round(statistics.median(stalls) / statistics.median(copies), 3)}))


def _fill_moments(optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's state as it is after one update."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _live(trainer) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint holds, where the training has it."""
    moments = {
        f"{index}/{kind}": value
        for index, state in enumerate(trainer.optimizer.state.values())
        for kind, value in state.items()
    }
    model = {f"model/{name}": tensor for name, tensor in trainer.agent.trainable_state_dict().items()}
    return model | {f"ema/{name}": tensor for name, tensor in trainer.ema.average.items()} | moments


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _spread(values: list[float]) -> dict[str, float]:
    return {name: round(_quantile(values, share), 2) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


if __name__ == "__main__":
    main()
