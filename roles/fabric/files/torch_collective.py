"""A collective over the path that an engine takes: torch.distributed, in the engine's image and environment.

One process of this starts the ranks of one host. Rank 0 prints a table in the shape of CANN's test programs, which one
parser reads; every rank checks its results. Needs torch, and torch_npu for the backend hccl.
"""

import argparse
import datetime
import os
import sys
import time


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["hccl", "nccl", "gloo"], required=True)
    parser.add_argument("--address", required=True, help="of the host with rank 0")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--world", type=int, required=True, help="ranks of all hosts")
    parser.add_argument("--first", type=int, required=True, help="the first rank of this host")
    parser.add_argument("--local", type=int, required=True, help="ranks of this host, a device each")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 1 << 20, 1 << 26], help="bytes")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120, help="for ranks to meet, and for one collective")
    return parser.parse_args()


def rank(local, given):
    """One rank: meets the others, runs, checks and measures."""
    import torch
    import torch.distributed as dist

    number = given.first + local
    device = torch.device("cpu")
    settle = None
    if given.backend == "hccl":
        import torch_npu  # noqa: F401 -- registers the devices

        device = torch.device("npu", local)
        torch.npu.set_device(device)
        settle = torch.npu.synchronize
    elif given.backend == "nccl":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        settle = torch.cuda.synchronize
    dist.init_process_group(
        given.backend,
        init_method=f"tcp://{given.address}:{given.port}",
        world_size=given.world,
        rank=number,
        timeout=datetime.timedelta(seconds=given.seconds),
    )
    if number == 0:
        print("data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:", flush=True)
    failed = False
    for size in given.sizes:
        ones = torch.full((size // 4,), float(number + 1), dtype=torch.float32, device=device)
        dist.all_reduce(ones)
        # Small whole numbers: exact in any order of adding them up.
        right = bool((ones == given.world * (given.world + 1) / 2).all())
        started = time.monotonic()
        for _ in range(given.iterations):
            dist.all_reduce(ones)
        if settle:
            settle()
        micros = (time.monotonic() - started) / given.iterations * 1e6
        row = f"{size:<17} | {micros:<14.2f} | {size / micros / 1e3:<20.5f} | {'success' if right else 'failed'}"
        if number == 0:
            print(row, flush=True)
        elif not right:
            print(f"local rank_id {number}, check result failed, {row}", flush=True)
        failed = failed or not right
    dist.destroy_process_group()
    sys.exit(1 if failed else 0)


def main():
    """Start the ranks of this host and end with the worst of their codes."""
    given = arguments()
    try:
        import torch.multiprocessing as processes
    except ImportError as error:
        print(f"no torch in this image: {error}", flush=True)
        return 77
    context = processes.get_context("spawn")
    ranks = [context.Process(target=rank, args=(local, given)) for local in range(given.local)]
    for process in ranks:
        process.start()
    # One that dies takes the others along: they would wait for it until their time is up.
    while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
        time.sleep(0.2)
    bad = [number for number, process in enumerate(ranks) if process.exitcode]
    for number, process in enumerate(ranks):
        if process.is_alive():
            process.terminate()
        process.join()
        if number in bad[:1]:
            print(f"rank {given.first + number} ended with {process.exitcode}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
