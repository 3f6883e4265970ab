"""What thinking and looking cost a decision, mode by mode, and what vLLM saves a rollout over plain transformers.

python scripts/benchmark_modes.py [--model outputs/demo/grpo/checkpoint ...] [--output modes_benchmark.json]

For each checkpoint, greedy, on train initial states of the config's tasks (nothing is said of success):

- decision: time from the observation to the decoded actions (`Turn.latency_s`), one decision at a time in vLLM, with
  `episode.mode` act, think and zoom, and zoom with `episode.think_every` 2 to 4. Where an episode ends the next initial
  state follows at once, so that think_every counts on: a reused thought may speak of another scene, which changes where
  the action goes and not how long it takes. No state is met twice: vLLM would have its prompt in the prefix cache.
  Behind an injected `<act>` exactly as many tokens are sampled as a chunk has, whatever the policy makes of it.
- rollout: the same episodes, `cluster.envs_per_actor` of them at once, with the vLLM sampler and with the
  TransformersSampler, which serves one request at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark_modes_run import measure_decisions, measure_rollout
from benchmark_result import machine, software
from rlvla.config import EpisodeConfig, EvaluateConfig, load
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.rollout.tasks import TaskStream, most_images
from rlvla.types import Trajectory

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "recipes/configs/evaluate_tiny_tabletop.yaml"
PAPER_RATIO = 1.19
"""Of thought and zoom to no thought, in time (VLA-Thinker, arXiv 2603.14523)."""


def modes(episode: EpisodeConfig) -> dict[str, EpisodeConfig]:
    """What is compared, by name; the first is what the others are divided by."""
    zoom = replace(episode, mode="zoom", think_every=1)
    return {
        "act": replace(zoom, mode="act"),
        "think": replace(zoom, mode="think"),
        "zoom": zoom,
        **{f"zoom, think_every {n}": replace(zoom, think_every=n) for n in (2, 3, 4)},
    }


def measure(model: Path, cfg: EvaluateConfig, args: argparse.Namespace) -> dict[str, Any]:
    """All of one checkpoint; the TransformersSampler comes first, before vLLM sets this process up for itself."""
    import torch
    import transformers

    from rlvla.samplers.local import TransformersSampler
    from rlvla.samplers.vllm.sampler import VLLMSampler

    transformers.utils.logging.disable_progress_bar()  # of loading weights
    torch.set_num_threads(cfg.sampler.threads)  # as vLLM's
    processor = PolicyProcessor.load(model)
    stream = TaskStream(config=cfg.env, seed=args.seed + 1)
    first, tasks = stream.take(2), stream.take(args.num_trajectories)
    plain = TransformersSampler(model, getattr(torch, cfg.sampler.dtype))
    asyncio.run(measure_rollout(plain, processor, cfg, first))
    slow = asyncio.run(measure_rollout(plain, processor, cfg, tasks))
    print(f"{_name(model)}: rollout with transformers took {slow[0]:.1f} s", flush=True)
    sampler = VLLMSampler(
        model,
        cfg.sampler,
        max_images=most_images(cfg.env, cfg.episode),
        max_model_len=cfg.episode.max_turn_tokens + 1,  # as in `rlvla.cluster.cluster`
        seed=args.seed,
        action_decoding=processor.action_decoding,
    )
    asyncio.run(measure_rollout(sampler, processor, cfg, first))
    fast = asyncio.run(measure_rollout(sampler, processor, cfg, tasks))
    print(f"{_name(model)}: rollout with vLLM took {fast[0]:.1f} s", flush=True)
    counts = {"rounds": args.rounds, "num_decisions": args.num_decisions, "seed": args.seed}
    decisions = asyncio.run(measure_decisions(sampler, processor, cfg, modes(cfg.episode), **counts))
    sampler.close()
    return {
        "model": _name(model),
        "action_decoding": processor.action_decoding,
        "num_action_tokens": processor.num_action_tokens,
        "decision": with_ratios(decisions),
        "rollout": compare_rollouts(fast, slow),
    }


def with_ratios(decisions: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each mode with `mean_to_act` and `p50_to_act`, its latency by that of mode act."""
    act = decisions["act"]
    return {
        name: mode | {f"{key}_to_act": mode[f"{key}_ms"] / act[f"{key}_ms"] for key in ("mean", "p50")}
        for name, mode in decisions.items()
    }


def compare_rollouts(
    vllm: tuple[float, Sequence[Trajectory]], transformers: tuple[float, Sequence[Trajectory]]
) -> dict[str, float]:
    """Trajectories a second of both, their ratio, and how many trajectories agree in every token.

    Args:
        vllm: seconds, and trajectories of the same tasks in the same order.
        transformers: likewise.
    """
    num = len(vllm[1])
    return {
        "num_trajectories": num,
        "vllm_per_s": num / vllm[0],
        "transformers_per_s": num / transformers[0],
        "ratio": transformers[0] / vllm[0],
        "num_same": sum(_tokens(a) == _tokens(b) for a, b in zip(vllm[1], transformers[1], strict=True)),
    }


def _tokens(trajectory: Trajectory) -> list[list[int]]:
    return [turn.token_ids.tolist() for turn in trajectory.turns]


def _name(path: Path) -> str:
    """The path as seen from the repository, so that a result tells nothing of the machine's folders."""
    return os.path.relpath(path.resolve(), ROOT)


def table(result: Mapping[str, Any]) -> str:
    """The result, to read."""
    facts = result["machine"]
    lines = [f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores; decisions one at a time, greedy"]
    for policy in result["policies"]:
        lines += [
            f"\n{policy['model']}: {policy['num_action_tokens']} action tokens, {policy['action_decoding']}",
            f"{'mode':22}{'p50 ms':>8}{'p95 ms':>8}{'mean ms':>9}{'mean to act':>13}{'tokens':>8}{'zooms':>7}{'of':>6}",
        ]
        lines += [_line(name, mode) for name, mode in policy["decision"].items()]
        rollout = policy["rollout"]
        lines.append(
            f"rollout of {rollout['num_trajectories']} trajectories, {rollout['num_same']} of them token for token the "
            f"same: vLLM {rollout['vllm_per_s']:.2f}/s, transformers {rollout['transformers_per_s']:.2f}/s, "
            f"{rollout['ratio']:.1f}x"
        )
    return "\n".join([*lines, f"\nthe paper's zoom to act: {PAPER_RATIO}"])


def _line(name: str, mode: Mapping[str, float]) -> str:
    return (
        f"{name:22}{mode['p50_ms']:8.1f}{mode['p95_ms']:8.1f}{mode['mean_ms']:9.1f}{mode['mean_to_act']:13.2f}"
        f"{mode['sampled_tokens']:8.1f}{mode['zooms']:7.2f}{mode['num_decisions']:6.0f}"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit naming the option that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "outputs/demo/grpo/checkpoint"
    parser.add_argument("--model", type=Path, nargs="+", default=[default], help="trained policies, one after another")
    parser.add_argument("--config", type=Path, default=CONFIG, help="evaluation config: env, limits, sampler")
    parser.add_argument("--num-decisions", type=int, default=24, help="of each mode in a round")
    parser.add_argument("--rounds", type=int, default=4, help="that count, behind one that warms up")
    parser.add_argument("--num-trajectories", type=int, default=48, help="of the rollout")
    parser.add_argument("--seed", type=int, default=0, help="of initial states")
    parser.add_argument("--output", type=Path, help="also write the result here, as JSON")
    args = parser.parse_args(argv)
    for model in args.model:
        if not (model / "config.json").is_file():
            parser.error(
                f"--model: {model} holds no checkpoint; scripts/demo.py makes outputs/demo/grpo/checkpoint, and "
                "recipes/sft.py --action-decoding parallel one that decodes actions in parallel"
            )
    for name in ("num_decisions", "rounds", "num_trajectories"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}: need at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    args = parse(argv)
    # Before torch, Mesa and transformers are loaded: as `rlvla.cluster.cluster` sets them for its actors.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    cfg = load(EvaluateConfig, ["--config", str(args.config)])
    result = {
        "command": shlex.join(["python", "scripts/benchmark_modes.py", *(sys.argv[1:] if argv is None else argv)]),
        "policies": [measure(model, cfg, args) for model in args.model],
        "num_decisions": args.num_decisions,
        "rounds": args.rounds,
        "envs_at_once": min(cfg.cluster.envs_per_actor, args.num_trajectories),
        "seed": args.seed,
        "tasks": list(cfg.env.tasks),
        "paper_zoom_to_act": PAPER_RATIO,
        "machine": machine(cfg.sampler.threads),
        **software(),
    }
    print(table(result))
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
