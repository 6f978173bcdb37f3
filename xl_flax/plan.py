"""Plans a run:  python -m xl_flax.plan --gin_file=gin/runs/mlm_xlmr_base.gin --topology=v5e:16x16

Compiles the run's real step for TPUs that are not there and says whether it fits, what it sends
between chips, and how long a step takes at best. It needs neither a TPU nor text nor a vocabulary
(what is assumed of the text is printed), only libtpu: `pip install -e .[plan]`. For GPUs, which
programs cannot be compiled for beforehand, CPUs stand in. The last line is the table as JSON.

The estimate is a roofline: a step takes as long as its arithmetic at the chip's peak, or as what it
moves to and from memory, whichever is longer, and then as long as what it sends. No machine is so
fast; what is slow here says where to look.

Exit codes: 0 it fits, 1 it does not, or another error, 2 usage.
"""

import argparse
import json
import os
from collections.abc import Sequence

os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU that is there is left to what runs on it
if __name__ == "__main__":
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program out of it is not written down

from xl_flax import cli, settings

NEEDLESS = ("MODEL_DIR", "CACHE_DIR", "VOCABULARY", "InitFrom.checkpoint")


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology", required=True, help="a TPU slice, as v5e:16x16 or v5p:4x4x4; GPUs, as h100:8"
    )
    parser.add_argument("--num_slices", type=int, default=1, help="so many slices, joined by DCN")
    parser.add_argument(
        "--tokens", type=float, help="of the whole run; default: those of its steps"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat policies and microbatches; rank what fits by its estimate",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    args = cli.parse(argv, __doc__, _flags, NEEDLESS)
    settings.check("--num_slices", args.num_slices, settings.Count)
    settings.check("--tokens", args.tokens, settings.Positive | None)
    from xl_flax.planning.plan import make_plan
    from xl_flax.planning.search import search
    from xl_flax.planning.tables import plan_table, ranking
    from xl_flax.planning.topologies import machine
    from xl_flax.training.config import TrainConfig

    config = TrainConfig()
    planned = machine(args.topology, args.num_slices)
    if args.search:
        plans = search(config, planned, args.tokens)
        print(ranking(plans) if plans else "nothing fits")
        print(json.dumps(plans))
        return cli.EXIT_DONE if plans else cli.EXIT_ERROR
    plan = make_plan(config, planned, args.tokens)
    print(plan_table(plan))
    print(json.dumps(plan))
    return cli.EXIT_DONE if plan["fits"] else cli.EXIT_ERROR


if __name__ == "__main__":
    cli.run(main)
