"""The data card's account of the annotator: who it was, what it cost, and what the checks made of its answers."""

from __future__ import annotations

from collections import Counter

from rlvla.annotation.card_counts import Counts
from rlvla.annotation.markdown import code, percent, table
from rlvla.annotation.take import Tally
from rlvla.config import AnnotateConfig, CheckConfig


def annotator_section(counts: Counts, tally: Tally, cfg: AnnotateConfig) -> str:
    """Annotator, model, prompts, attempts and tokens."""
    retries = sum((number - 1) * decisions for number, decisions in counts.attempts.items())
    accepted = ", ".join(f"{number}: {counts.attempts[number]:,}" for number in sorted(counts.attempts))
    facts = {
        "annotator": _names(counts.annotators),
        "model": _names(counts.models),
        "prompt hash": _names(counts.prompt_hashes),
        "seed of the run": str(cfg.seed),
        "decisions by answers until one was accepted": accepted,
        "answers rejected": f"{retries + tally.num_dropped * cfg.max_attempts:,}",
        **_tokens(counts, tally, cfg),
    }
    return table(("", ""), ((name, fact) for name, fact in facts.items() if fact))


def _tokens(counts: Counts, tally: Tally, cfg: AnnotateConfig) -> dict[str, str]:
    """Tokens and what they cost, where the annotator counts any."""
    used = tally.prompt_tokens + tally.completion_tokens
    if not used:
        return {}
    facts = {
        "tokens": f"{tally.prompt_tokens:,} of prompts, {tally.completion_tokens:,} of answers",
        "tokens per decision kept": f"{used / counts.num_decisions:,.0f}",
    }
    prices = cfg.openai.usd_per_million_prompt_tokens, cfg.openai.usd_per_million_completion_tokens
    if any(prices):
        cost = (tally.prompt_tokens * prices[0] + tally.completion_tokens * prices[1]) / 1e6
        facts["cost"] = f"${cost:,.2f}, at ${prices[0]:g} and ${prices[1]:g} per million tokens of prompts and answers"
    return facts


def _names(names: Counter[str]) -> str:
    """Names with their decisions, the latter where there are several."""
    known = sorted((name for name in names if name), key=lambda name: (-names[name], name))
    return ", ".join(code(name) + (f" ({names[name]:,} decisions)" if len(names) > 1 else "") for name in known)


def checks_section(counts: Counts, tally: Tally, cfg: AnnotateConfig) -> str:
    """The configured checks, and whatever else was counted, say before a run was resumed with fewer of them."""
    names = list(dict.fromkeys([*cfg.checks.names, *sorted({*counts.checks, *tally.rejected, *tally.dropped})]))
    names = [name for name in names if counts.checks[name] or tally.rejected.get(name) or tally.dropped.get(name)]
    if not names:
        return ""
    wants = _wants(cfg.checks)
    rows = [
        (
            code(name),
            wants.get(name, ""),
            f"{counts.checks[name]:,}",
            f"{tally.rejected.get(name, 0):,}",
            f"{tally.dropped.get(name, 0):,}",
        )
        for name in names
    ]
    header = ("check", "wants", "decisions passed", "answers rejected", "decisions dropped")
    return table(header, rows, numeric=(2, 3, 4)) + (
        "\nAn answer may fail several checks, and counts for each. A decision is dropped when its last answer failed, "
        f"after {cfg.max_attempts} attempt{'s' if cfg.max_attempts > 1 else ''}.\n"
    )


def _wants(cfg: CheckConfig) -> dict[str, str]:
    """What each check wants, with its limits."""
    looks = " to ".join(str(number) for number in dict.fromkeys(cfg.looks))
    falls = f"never falls by more than {percent(cfg.progress_slack)}" if cfg.progress_slack else "never falls"
    return {
        "markup": f"what the policy's own parser reads as it was meant; looks: {looks} at a key frame, none elsewhere",
        "box": (
            f"boxes within the frame, of at most {percent(cfg.max_box_area)} of it, "
            f"with sides of at least {cfg.min_box_side} thousandths"
        ),
        "length": f"{cfg.num_words[0]} to {cfg.num_words[1]} words a thought",
        "language": "plain English prose",
        "gripper": "nothing said of the gripper that its motion contradicts",
        "subject": "the object that the sub-task is about, where a simulator can be asked",
        "progress": f"a share from 0 to 1 that {falls}",
        "repetition": f"at most {cfg.max_repetition} decisions in a row that think nearly the same",
        "grounding": (
            f"a box that shows at least {percent(cfg.containment)} of its subject and is at most {cfg.spread:g} times "
            "as large, where a simulator can be asked"
        ),
    }
