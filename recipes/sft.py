"""The cold start: supervised fine-tuning on annotated demonstrations, which teaches the markup and how to look.

python recipes/sft.py --config recipes/configs/sft_tiny_tabletop.yaml
accelerate launch --num_processes 8 recipes/sft.py --config ...      (many GPUs, many nodes)
python recipes/sft.py --config ... --dry-run                         (memory, tokens and time, before any weights)
"""

from __future__ import annotations

import os

from rlvla import plan
from rlvla.config import SFTConfig, load
from rlvla.data import dataset
from rlvla.durable.files import claim, hold
from rlvla.durable.interrupts import Interrupts
from rlvla.learner.sft import SFTTrainer
from rlvla.policies.family import start_policy
from rlvla.run import disk
from rlvla.run.preflight import check_result, check_sft
from rlvla.run.sft import SFTRun


def main(cfg: SFTConfig) -> None:
    """Train for `cfg.num_steps` steps; an interrupted run goes on from its last state."""
    if cfg.dry_run:
        print(plan.of_sft(cfg))
        return
    check_sft(cfg)
    claim(cfg.output, num_bytes=0)
    if os.environ.get("RANK", "0") == "0":  # of `accelerate launch`: one process for all
        hold(cfg.output)
    with Interrupts() as interrupts:
        demonstrations = dataset.read(cfg.dataset)
        model, policy = start_policy(cfg, demonstrations)
        check_result(cfg, model, policy)
        claim(cfg.output, num_bytes=disk.of_sft(cfg, model))
        trainer = SFTTrainer(cfg, model, policy, demonstrations)
        with SFTRun(cfg, trainer, interrupts) as run:
            for step in run.steps():
                loss = trainer.step(step)
                run.log(step, loss)
        run.finish()


if __name__ == "__main__":
    main(load(SFTConfig))
