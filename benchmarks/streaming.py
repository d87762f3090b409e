"""Streamed images: how fast they are decoded beside a training step of ResNet-18, and how much memory a training takes.

    python benchmarks/streaming.py [--data FOLDER] [--threads 2] [--processes 0 1 2] [--steps 3] [--json streaming.json]

FOLDER has parquet files of the hub; without it 4,096 JPEG images of 64 x 64 pixels are made. Images a second: wall time, and
processor time of one core, which other programs of the machine do not change. The training is that of one process of
its own, with its decoding processes; its memory is the sum of the peaks (VmHWM) of all of them, in which pages that they
share count several times.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 4096


def make(folder: Path) -> Path:
    """Smooth noise as JPEG of quality 90, as many bytes as photos of this size."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng, encoded = np.random.default_rng(0), []
    for _ in range(COUNT):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
        encoded.append(file.getvalue())
    table = pa.table({"image": pa.array(encoded), "label": pa.array(np.arange(COUNT) % 10)})
    pq.write_table(table, folder / "train.parquet", row_group_size=100)
    pq.write_table(table[:500], folder / "test.parquet")
    return folder


def decoding(folder: Path, processes: int, batches: int = 60, batch: int = 128) -> dict[str, float]:
    """Images a second of wall and of processor time, after the processes have started."""
    import torch

    from opnorm.data import parquet
    from opnorm.data.streaming import decoding_processes

    images = parquet(str(folder), stream=True).train.images
    order = images.shuffled(torch.Generator().manual_seed(0))
    chunks = order.repeat(1 + batches * batch // len(order)).split(batch)[: batches + 10]
    whose = resource.RUSAGE_CHILDREN if processes else resource.RUSAGE_SELF
    used = cpu(whose)
    with decoding_processes(processes) as pool:
        # of one epoch after the other, as each row may be asked for once
        loader = (
            b
            for at in range(0, len(chunks), 20)
            for b in images.batches(chunks[at : at + 20], pool, processes)
        )
        for _ in range(10):
            next(loader)
        started = time.perf_counter()
        count = sum(len(b) for b in loader)
        seconds = time.perf_counter() - started
    return {"wall": count / seconds, "processor": (count + 10 * batch) / (cpu(whose) - used)}


def cpu(whose: int) -> float:
    """Seconds of processor time."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def training(folder: str, threads: int, steps: int, batch: int, to: Any) -> None:
    """A few steps of ResNet-18, in a process of its own: seconds a step without the first, and the memory."""
    import torch

    from opnorm.data import parquet
    from opnorm.models import resnet18
    from opnorm.training import TrainingSettings, train

    torch.set_num_threads(threads)
    data = parquet(folder, stream=True)
    model = resnet18(in_shape=data.image_shape, classes=data.num_classes)
    stamps: list[tuple[float, float]] = []
    peaks: dict[str, float] = {}

    class DoneError(Exception):
        """The steps are done."""

    def note(progress: Any) -> None:
        stamps.append((time.perf_counter(), time.process_time()))
        peaks.update(memory())
        if len(stamps) > steps:
            raise DoneError

    with suppress(DoneError):
        train(model, data, TrainingSettings(epochs=1, batch=batch), progress=note)
    wall, used = ((stamps[-1][i] - stamps[0][i]) / steps for i in (0, 1))
    to.put({"wall": batch / wall, "processor": batch / used, "seconds": wall, "memory": peaks})


def memory() -> dict[str, float]:
    """The peak resident memory in MB of this process and of those that it started."""
    own = os.getpid()
    started = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    found = {}
    for pid in [str(own), *started]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        found["main" if pid == str(own) else pid] = peak * 1024 / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder with parquet files")
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3, help="of the training, after the first")
    parser.add_argument("--batch", type=int, default=32, help="of the training")
    from machine import add_options, begin  # here: each decoding process reads this file, and needs no torch

    add_options(parser, 2)
    args = parser.parse_args()
    machine = begin(parser, args, cpu_only=True)
    chosen = {"processes": args.processes, "steps": args.steps, "batch": args.batch}
    figures: dict[str, Any] = {"about": machine | chosen | {"data": str(args.data or "made")}}
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or make(Path(made))
        print(f"\n{'images a second':32}{'wall':>10}{'a core':>10}")
        for processes in args.processes:
            name = f"decoding, {processes} processes" if processes else "decoding in the process itself"
            figures[name] = decoding(folder, processes)
            print(f"{name:32}{figures[name]['wall']:10.0f}{figures[name]['processor']:10.0f}", flush=True)
        context = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        trained = context.Process(
            target=training, args=(str(folder), args.threads, args.steps, args.batch, results)
        )
        trained.start()
        figures["ResNet-18 step"] = found = results.get()
        trained.join()
    print(f"{'ResNet-18, a training step':32}{found['wall']:10.1f}{found['processor']:10.1f}")
    total = sum(found["memory"].values())
    print(
        f"\npeak memory {total:.0f} MB: {', '.join(f'{v:.0f}' for v in found['memory'].values())} of the processes"
    )
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)


if __name__ == "__main__":
    main()
