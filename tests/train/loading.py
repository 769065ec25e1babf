"""Started by torchrun: load a model into shards, and write what each process saw into a file of its rank."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from preftune.model.load import load_model
from preftune.model.policy import Policy
from preftune.model.shard import ShardOptions, cut_up, full_tensors
from preftune.model.whole_model import LoadOptions
from preftune.train.processes import Processes


def main(folder: str, travels: bool) -> None:
    dist.init_process_group("gloo")
    processes = Processes(rank=dist.get_rank(), size=dist.get_world_size(), lockstep=True)

    def load() -> Policy:
        model = load_model(folder, LoadOptions())
        if not travels:
            model.rule = lambda: None  # what pickle cannot write
        return Policy(model=model, precision="fp32", sharing="flat", sharing_reason="")

    policy = processes.models_from_main(load)
    where = {p.device.type for p in policy.model.parameters()}
    cut_up(policy.model, None, ShardOptions(mode="full"), torch.device("cpu"), low=False)
    whole = full_tensors(policy.trainable(), keep=True)
    source = load_model(folder, LoadOptions()).state_dict()
    seen = {
        "arrives_on": sorted(where),
        "same": all(torch.equal(value, source[name]) for name, value in whole.items()),
        "tied": policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight,
        "count": len(whole),
    }
    Path(f"seen-{processes.rank}.json").write_text(json.dumps(seen))
    processes.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "travels")
