"""Where the time of a training step goes, by groups of operators.

    python bench/profile_step.py [--glue-dir GLUE] [--tasks mnli] [--batch-size 32] [--steps 10]

Trains the same steps twice under torch.profiler, after a first pass of each: as transformers has
the encoder (`plain`: padded in groups of similar length, torch's dropout and embedding), and as
Outshine has it on this device. An operator counts in the group of the outermost one that called
it, with its own time alone: on a GPU that of its kernels, so that `outside` is the time in which no
kernel ran. Prints one JSON object, and a table to stderr. `multiplied` are the operations of the
matrix products that ran, attention included, `formula` those that rate.py counts.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

from common import GLUE, arguments, conditions, encoder_folder, fit, plan_of
from rate import operations
from torch.profiler import ProfilerActivity, profile

from outshine.encoders import locate
from outshine.forward import make_forward
from outshine.glue_tasks import glue
from outshine.model import build_model
from outshine.planning import Plan

# Tried in this order on "outermost operator/operator".
GROUPS = {
    "attention": r"_SegmentAttention|scaled_dot_product|ScaledDotProduct|varlen",
    "dropout": r"_Drop|dropout|Dropout",
    "embeddings": r"_Lookup|embedding|Embedding",
    "optimizer": r"Optimizer",
    "clipping": r"_foreach_norm|_foreach_mul_|vector_norm",
    "matrix products": r"/aten::(addmm|mm)$",
    "norms and activations": r"layer_norm|LayerNorm|gelu|Gelu|tanh|Tanh",
    "copies and casts": r"/aten::(copy_|_to_copy|to|clone|contiguous)$",
}
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm")


def group(event: Any) -> str:
    """The group of one operator call."""
    outermost = event
    while outermost.cpu_parent is not None:
        outermost = outermost.cpu_parent
    name = f"{outermost.name}/{event.name}"
    return next((g for g, pattern in GROUPS.items() if re.search(pattern, name)), "rest")


def measure(plan: Plan) -> dict[str, Any]:
    """Seconds per step by group, and operations."""
    on_gpu = plan.forward.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler = profile(activities=activities, with_flops=True)
    found = fit(plan, warm=True, around=profiler)
    spent: Counter[str] = Counter()
    multiplied = 0
    for event in profiler.events():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[group(event)] += own / 1e6
        multiplied += event.flops if event.name in PRODUCTS else 0
    spent["outside"] = max(0.0, found.seconds - spent.total())
    steps = plan.mixture.num_steps
    return {
        "ms_per_step": round(1e3 * found.seconds / steps, 2),
        "precision": plan.forward.precision,
        "share": {name: round(s / spent.total(), 4) for name, s in spent.most_common()},
        "gflop_per_step": {
            "formula": round(operations(plan.forward.model, found.lengths, True) / steps / 1e9, 3),
            "multiplied": round(multiplied / steps / 1e9, 3),
        },
    }


def plain(plan: Plan) -> Plan:
    """The same with the encoder as transformers has it."""
    model = build_model(locate(plan.cfg.encoder), plan.tasks, attention_dropout=0.0)
    forward, tokenizer = plan.forward, plan.tokenizer
    forward = make_forward(model, tokenizer, forward.device, forward.precision, plain=True)
    return replace(plan, forward=forward)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--glue-dir")
    parser.add_argument("--tasks", nargs="+", default=["mnli"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    names = GLUE if args.tasks == ["glue"] else args.tasks
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("plain", "outshine"):
            plan = plan_of(
                glue(*names, data_dir=args.glue_dir),
                encoder=encoder_folder(args.encoder, folder),
                device=args.device,
                preset="bam-single",
                epochs=1000.0,
                max_steps=args.steps,
                batch_size=args.batch_size,
            )
            sides[side] = measure(plain(plan) if side == "plain" else plan)
            print(side, json.dumps(sides[side]["share"], indent=2), file=sys.stderr)
    about = {"bench": "profile", "tasks": names, "batch_size": args.batch_size}
    print(json.dumps(about | conditions(args) | {"steps": args.steps, "sides": sides}, indent=2))


if __name__ == "__main__":
    main()
