"""Runs tensor_checks.py and model_checks.py in groups of two to four processes on the CPU.

`python checks.py FOLDER GROUPS` writes for each process what failed. GROUPS is a JSON object: for
each number of processes the names of the checks, such as '{"2": ["sfw", "projected_sgd"]}'.
test_sharded.py starts it, since processes are forked from one that has no threads.
"""

import json
import sys
import traceback
from pathlib import Path

import model_checks
import tensor_checks
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CHECKS = {
    name.removeprefix("check_"): check
    for module in (tensor_checks, model_checks)
    for name, check in vars(module).items()
    if name.startswith("check_")
}


def work(rank, world, folder, names):
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    path, outcomes = Path(folder) / f"{world}_{rank}.json", {}
    try:
        for name in names:
            CHECKS[name]()
            outcomes[name] = ""
    except Exception:  # the other processes may wait for this one: nothing goes on
        outcomes |= dict.fromkeys(names[names.index(name) :], traceback.format_exc())
        raise
    finally:
        path.write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    for size, names in json.loads(sys.argv[2]).items():
        mp.start_processes(
            work, args=(int(size), sys.argv[1], names), nprocs=int(size), start_method="fork"
        )
