"""Runs benchmarks one after another and keeps what they print in results/bench/NAME.json.

    python bench/run.py [NAME ...]

Without names it runs all that this machine can; those of a GPU are left out where there is none.
One that fails is named at the end, with exit code 1, and the others run all the same. GLUE files
come from the folder in OUTSHINE_GLUE_DIR. On 2 cores all take a few hours: leave the
machine alone meanwhile. `make docs` puts the numbers into docs/performance.md.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results" / "bench"
BENCHES = {
    "train": "train.py",
    "train-glue": "train.py --tasks glue --batch-size 128 --sides outshine tuned",
    "profile": "profile_step.py --batch-size 32",
    "logits": "logits.py",
    "pipelines": "pipelines.py",
    "encode": "encode.py",
    "scaling": "scaling.py --only rows tasks",
    "ddp": "scaling.py --only processes",
    "memory": "memory.py",
    "predict": "predict.py",
    "onnx": "onnx_latency.py",
    "serve": "serve.py --seconds 600",
    "stream": "stream.py --encoder bert-tiny-shape",
    "study-scale": "study_scale.py",
    "study-overhead": "study_overhead.py",
    "study-kill": "kill_study.py",
    "study-jobs": "study_jobs.py",
}
GPU = "--device cuda --encoder bert-base-shape"
GPU_TRAIN = f"train.py {GPU} --tasks glue --batch-size 128 1024 --rows 20480 --sides outshine tuned"
GPU_BENCHES = {
    "train-cuda": f"{GPU_TRAIN} --compile",
    "train-cuda-graphs": f"{GPU_TRAIN} --set compile=true",
    "study-jobs-cuda": f"study_jobs.py {GPU} --jobs 1 2 4 8 auto --seeds 16",
    "seeds-cuda": f"seeds.py {GPU}",
    "logits-cuda": f"logits.py {GPU} --rows 20000",
    "profile-cuda": f"profile_step.py {GPU} --tasks glue --batch-size 128",
}


def main() -> None:
    import torch

    every = BENCHES | GPU_BENCHES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *every], metavar="NAME")
    names = parser.parse_args().names or list(every)
    failed = []
    for name in names:
        if name in GPU_BENCHES and not torch.cuda.is_available():
            print(f"{name}: left out, for there is no GPU", file=sys.stderr)
            continue
        script, *words = shlex.split(every[name])
        print(f"{name}: python bench/{every[name]}", file=sys.stderr)
        command = [sys.executable, str(Path(__file__).with_name(script)), *words]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            failed.append(name)
            continue
        (RESULTS / f"{name}.json").write_bytes(done.stdout)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what each said stands above")


if __name__ == "__main__":
    main()
