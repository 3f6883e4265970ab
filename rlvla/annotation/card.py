"""The data card: what a data set holds, who annotated it, what the checks threw out, and how far to trust it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlvla import __version__
from rlvla.annotation.card_annotator import annotator_section, checks_section
from rlvla.annotation.card_counts import Counts, KindCounts, count, quantile
from rlvla.annotation.contact_sheet import FILE as CONTACT_SHEET
from rlvla.annotation.markdown import code, fenced, percent, plain, table
from rlvla.annotation.take import Tally
from rlvla.config import AnnotateConfig, to_dict
from rlvla.data.dataset import read_tasks

MAX_TASKS = 150
"""Rows in the table of tasks: LIBERO-90 and LIBERO-10 fit."""
_HIDDEN = {"output", "num_samples", "openai.base_url", "openai.api_key_env"}
"""Keys that say where somebody works, and nothing about the data."""


def write_card(folder: Path, tally: Tally, cfg: AnnotateConfig) -> None:
    """Write `README.md` and the charts that it shows.

    Args:
        folder: a finished data set.
        tally: of the whole run.
        cfg: what made it.
    """
    from rlvla.annotation.card_plots import write_plots  # so that `annotate.py --help` does not wait for matplotlib

    counts, tasks = count(folder), read_tasks(folder)
    charts = write_plots(folder, counts, tasks, tally)
    sections = {
        "Contents": _contents(counts, tally, cfg) + _looks(counts),
        "Tasks": _tasks(counts, tasks),
        "Annotator": annotator_section(counts, tally, cfg),
        "Checks": checks_section(counts, tally, cfg),
        "Charts": "".join(f"![{title}]({path})\n" for path, title in charts),
        "How it was made": _recipe(cfg),
        "Before you use it": _caveats(cfg),
    }
    body = "".join(f"\n## {heading}\n\n{content}" for heading, content in sections.items() if content)
    (folder / "README.md").write_text(_front_matter(counts) + _head(cfg) + body, encoding="utf-8")


def _front_matter(counts: Counts) -> str:
    """What the Hugging Face Hub reads; the licence is for the owner of the recordings to say."""
    facts = {
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "rlvla", "chain-of-thought"],
        "size_categories": [_size_category(counts.num_decisions)],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def _size_category(num_rows: int) -> str:
    """The Hub's own classes: powers of ten, thousands by their letters."""
    if num_rows < 1000:
        return "n<1K"
    power = int(math.log10(num_rows) + 1e-9)
    low, high = (f"{10 ** (p % 3)}{'KMBT'[p // 3 - 1]}" for p in (power, power + 1))
    return f"{low}<n<{high}"


def _head(cfg: AnnotateConfig) -> str:
    sheet = f"\n[Random decisions to look at]({CONTACT_SHEET})\n" if cfg.num_samples else ""
    return f"""
# {plain(cfg.output.name)}

Robot episodes with embodied chain of thought: at each decision what an expert saw and did, what it is said to have
thought, and where it is said to have looked closer.

A [LeRobot v3](https://huggingface.co/docs/lerobot/lerobot-dataset-v3) data set, one row a decision: `action` is a chunk
[K, A], thoughts and looks are in `annotation.*`, and where they come from is in `provenance.*`.
{sheet}"""


def _contents(counts: Counts, tally: Tally, cfg: AnnotateConfig) -> str:
    num_keys, num_looks = counts.key_frames.num_decisions, sum(counts.num_looks.values())
    num_with_look = counts.key_frames.num_with_look + counts.others.num_with_look
    kept = f"{counts.num_decisions:,}"
    if tally.num_dropped:
        kept += f"; {tally.num_dropped:,} more were dropped ({percent(tally.num_dropped, tally.num_decisions)})"
    facts = {
        "made of": code(cfg.source.name) if cfg.source else f"what {code(cfg.expert)} does in {code(cfg.env.id)}",
        **({"actions": f"{cfg.read.action_kind}, but for the gripper's"} if cfg.source else {}),
        "tasks": f"{len(counts.tasks):,}",
        "episodes": f"{counts.num_episodes:,}",
        "decisions": kept,
        "key frames": f"{num_keys:,} ({percent(num_keys, counts.num_decisions)})",
        "looks": f"{num_looks:,}, in {percent(num_with_look, counts.num_decisions)} of the decisions",
    }
    return table(("", ""), facts.items())


def _looks(counts: Counts) -> str:
    """Thoughts and looks, key frames beside the rest; then the boxes."""
    kinds = {"key frames": counts.key_frames, "other decisions": counts.others}
    rows = [(name, *_kind(kind)) for name, kind in kinds.items() if kind.num_decisions]
    header = ("", "decisions", "with a look", "thoughts", "words, mean", "median", "95th percentile", "longest")
    content = "\n" + table(header, rows, numeric=range(1, len(header)))
    if counts.sides:
        sides, area = counts.sides, percent(counts.area_sum, sum(counts.num_looks.values()))
        content += (
            f"\nA box covers {area} of the frame on average; its sides are {min(sides)} to {max(sides)} thousandths of "
            f"the frame long, {quantile(sides, 0.5)} in the median.\n"
        )
    return content


def _kind(kind: KindCounts) -> tuple[str, ...]:
    with_look = percent(kind.num_with_look, kind.num_decisions)
    num_thoughts = sum(kind.words.values())
    if not num_thoughts:
        return f"{kind.num_decisions:,}", with_look, "0", "", "", "", ""
    mean = sum(length * number for length, number in kind.words.items()) / num_thoughts
    lengths = (quantile(kind.words, 0.5), quantile(kind.words, 0.95), max(kind.words))
    return f"{kind.num_decisions:,}", with_look, f"{num_thoughts:,}", f"{mean:.1f}", *(f"{n:,}" for n in lengths)


def _tasks(counts: Counts, tasks: Sequence[str]) -> str:
    shown = sorted(counts.tasks)[:MAX_TASKS]
    rows = [(plain(tasks[index]), *(f"{n:,}" for n in dataclasses.astuple(counts.tasks[index]))) for index in shown]
    rest = len(counts.tasks) - len(shown)
    header = ("instruction", "episodes", "decisions", "key frames", "looks")
    return table(header, rows, numeric=range(1, 5)) + (f"\n{rest:,} more tasks are not listed.\n" if rest else "")


def _recipe(cfg: AnnotateConfig) -> str:
    """The keys that differ from the defaults; where files lie is cut down to their names."""
    chosen = yaml.safe_dump(_difference(to_dict(cfg), to_dict(AnnotateConfig())), sort_keys=False, allow_unicode=True)
    return (
        f"`python recipes/annotate.py --config annotate.yaml` of rlvla {__version__}, where `annotate.yaml` holds\n\n"
        + fenced(chosen, "yaml")
        + "\nEvery key is in `config.yaml`, the versions of what ran are in `provenance.json`.\n"
    )


def _difference(values: Mapping[str, Any], defaults: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    difference = {}
    for key, value in values.items():
        name = f"{path}.{key}".strip(".")
        if name in _HIDDEN or value == defaults.get(key):
            continue
        if isinstance(value, Mapping):
            difference[key] = _difference(value, defaults.get(key) or {}, name)
        else:
            difference[key] = Path(value).name if isinstance(value, str) and value.startswith("/") else value
    return {key: value for key, value in difference.items() if value != {}}


def _caveats(cfg: AnnotateConfig) -> str:
    writer = "A vision-language model" if cfg.annotator == "openai" else f"A program ({code(cfg.annotator)})"
    terms = ", and so may the terms of the model that annotated them" if cfg.annotator == "openai" else ""
    return f"""\
- {writer} wrote the annotations after the fact. They say what a thought could have been, not what moved the expert, and
  nobody has read them all.
- They may be wrong even where every check passed. The checks hold form and numbers against each other and against the
  robot's motion; whether a look shows what the thought speaks of is checked only where a simulator could be asked.
- Decisions without an acceptable answer are left out, so what is hard to annotate is rarer here than in the episodes.
- No licence is stated here: that of the episodes applies{terms}.
"""
