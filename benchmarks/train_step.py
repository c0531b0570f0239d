"""What objective, Attention Residuals, precision and compilation cost a step: `python benchmarks/train_step.py`.

Whole updates (loss, gradients, clipping, AdamW, EMA) on cached features, side by side in one run. Ratios are medians
over rounds, with quartiles.
"""

import argparse

import torch
from side_by_side import median, ratio, side_by_side
from synthetic import agent, batch, trainer

from roboimi.vla.cpu_matmul import fast_float32_products

VARIANTS = {
    "imf, AttnRes": ([], {}),
    "imf, plain residual": (["head.attn_res=false"], {}),
    "flow, AttnRes": (["objective=flow"], {}),
    "flow, plain residual": (["objective=flow", "head.attn_res=false"], {}),
}
MORE = {
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": True},
    "bfloat16+compile": {"precision": "bfloat16", "compile": True},
}
STEPS = 50_000


def main() -> None:
    """Print a table for each head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=["small", "base"])
    parser.add_argument("--also", nargs="*", default=[], choices=MORE, help="further settings of the IMF/AttnRes step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    content = batch("features")
    print(f"device {options.device}, {options.threads} threads, batch 64")
    variants = VARIANTS | {f"imf, AttnRes, {name}": ([], MORE[name]) for name in options.also}
    with fast_float32_products():
        for head in options.heads:
            trainers = {
                name: trainer(agent([f"head={head}", *overrides]).to(options.device), content, **settings)
                for name, (overrides, settings) in variants.items()
            }
            times = side_by_side({name: made.advance for name, made in trainers.items()}, options.rounds, warmup=3)
            print(f"\nhead {head}")
            for name, measured in times.items():
                hours = STEPS * median(measured) / 3.6e6
                print(f"  {name:30} {median(measured):8.1f} ms a step, {hours:6.2f} h for 50,000 steps")
            print(f"  imf / flow, AttnRes:       {ratio(times['imf, AttnRes'], times['flow, AttnRes'])}")
            print(f"  AttnRes / plain, imf:      {ratio(times['imf, AttnRes'], times['imf, plain residual'])}")
            print(f"  AttnRes / plain, flow:     {ratio(times['flow, AttnRes'], times['flow, plain residual'])}")
            for name in options.also:
                print(f"  {name} / eager float32: {ratio(times[f'imf, AttnRes, {name}'], times['imf, AttnRes'])}")


if __name__ == "__main__":
    main()
