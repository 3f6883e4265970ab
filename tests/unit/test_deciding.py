"""One decision with a scripted sampler: what is asked, what becomes of the answer, for both ways to decode actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import EpisodeConfig, GRPOConfig
from rlvla.data.types import Demonstration
from rlvla.policies.markup import print_zoom
from rlvla.policies.thinker.decoding import block_ids
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.turn_context import Recall
from rlvla.protocols import Decided
from rlvla.types import EndReason, SegmentKind
from rlvla_reward.format import is_well_formed
from tests import parallel_policies as tiny
from tests.deciding import decided, scripted
from tests.trajectories import ScriptedSampler

KIND = SegmentKind
ZOOM = print_zoom(0, (100, 250, 300, 450))
BINS = [3, 1, 4, 1, 5, 2]
SEEN = Demonstration(
    instruction=tiny.INSTRUCTION,
    images=(tiny.image(0),),
    proprio=np.zeros(4, np.float32),
    texts=(ZOOM, ""),
    crops=(tiny.image(9),),
    actions=np.zeros((3, 2), np.float32),
)


@pytest.fixture(scope="module", params=["autoregressive", "parallel"])
def processor(request, tmp_path_factory) -> PolicyProcessor:
    path = tmp_path_factory.mktemp(request.param)
    return PolicyProcessor.load(tiny.save("idefics3", path, action_decoding=request.param))


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> PolicyProcessor:
    return PolicyProcessor.load(tiny.save("idefics3", tmp_path_factory.mktemp("parallel")))


def block(processor: PolicyProcessor) -> list[int]:
    return [processor.vocabulary.action_ids[bin_] for bin_ in BINS]


def says(processor: PolicyProcessor, text: str) -> list[list[int]]:
    """The answers of a sampler that says a text; the one word `ACT` in it is a chunk of actions."""
    before, is_acting, _ = text.partition("ACT")
    encode, close = processor.vocabulary.encode, processor.vocabulary.mark_ids["</act>"]
    if not is_acting:
        return [encode(text)]
    if processor.decoding.at_once:
        return [*([encode(before)] if before else []), block(processor)]
    return [[*encode(before), *block(processor), close]]


def play(
    processor: PolicyProcessor, *texts: str, memory: Recall | None = None, **config: Any
) -> tuple[Decided, ScriptedSampler]:
    sampler = scripted(processor, [answer for text in texts for answer in says(processor, text)])
    return decided(processor, sampler, SEEN, memory=memory, **config), sampler


def kinds(decision: Decided) -> list[SegmentKind]:
    """Without the `</act>` that is injected behind a block."""
    found = [segment.kind for segment in decision.turn.segments]
    return found[:-1] if found[-1] is KIND.PROMPT and decision.actions is not None else found


def learned(processor: PolicyProcessor, decision: Decided) -> str:
    """What is trained on."""
    text = processor.vocabulary.decode(decision.turn.token_ids[decision.turn.loss_mask].tolist())
    actions = "".join(f"<act_{bin_}>" for bin_ in BINS)
    return text.replace(actions, "ACT")


CASES = [
    (
        "zoom",
        [f"<think>look</think>{ZOOM}", "<think>press</think><act>ACT"],
        "PROMPT THINK TOOL_CALL TOOL_RESULT THINK ACT",
    ),
    ("zoom", ["<act>ACT"], "PROMPT ACT"),
    ("think", ["<think>look</think>", "ACT"], "PROMPT THINK PROMPT ACT"),
    ("think", [f"<think>look</think>{ZOOM}", "ACT"], "PROMPT THINK PROMPT ACT"),
    ("act", ["ACT"], "PROMPT PROMPT ACT"),
]


@pytest.mark.parametrize(("mode", "texts", "expected"), CASES)
def test_what_was_sampled_is_what_is_trained_on(processor, mode, texts, expected):
    decision, sampler = play(processor, *texts, mode=mode)
    assert [kind.name for kind in kinds(decision)] == expected.split()
    close = "" if processor.decoding.at_once else "</act>"
    said = "".join(text.replace("ACT", f"ACT{close}") for text in texts)
    assert learned(processor, decision) == (said.replace(ZOOM, "") if mode == "think" else said)
    assert (decision.turn.sampler_logprobs != 0).tolist() == decision.turn.loss_mask.tolist()
    assert np.array_equal(decision.actions, processor.codec.decode(np.array(BINS)))
    assert is_well_formed(decision.turn) == ("<think>" in texts[0])
    prompt, marks, banned = decision.turn.segments[0], processor.vocabulary.mark_ids, processor.vocabulary.slot_ids
    assert [request.num_prefix_tokens for request in sampler.requests] == [prompt.end] * len(sampler.requests)
    stops = (marks["</think>" if mode == "think" else "</tool>"], marks[processor.decoding.last_mark])
    for request in sampler.requests:
        if request.num_actions:
            assert (request.num_actions, request.stop_ids, request.banned_ids) == (tiny.NUM_ACTIONS, (), ())
            assert request.prompt_ids[-1] == marks["<act>"]
        else:
            assert request.stop_ids == stops
            assert set(request.banned_ids) == {*banned, *([marks["<tool>"]] if mode == "think" else [])}


def test_what_was_looked_at_is_in_the_turn(processor):
    decision, sampler = play(processor, f"<think>look</think>{ZOOM}", "<think>press</think><act>ACT")
    assert [s.text for s in decision.turn.of_kind(KIND.THINK)] == ["look", "press"]
    assert decision.turn.of_kind(KIND.TOOL_CALL)[0].box == (100, 250, 300, 450)
    assert all(np.array_equal(*pair) for pair in zip(decision.turn.images, (*SEEN.images, *SEEN.crops), strict=True))
    assert len({request.seed for request in sampler.requests} - {0}) == len(sampler.requests)


def test_a_block_is_a_request_of_its_own_at_a_temperature_of_its_own(parallel):
    decision, sampler = play(parallel, "<think>press</think><act>ACT", temperature=1.2, action_temperature=0.4)
    text, actions = sampler.requests
    assert (text.temperature, actions.temperature, text.num_actions, actions.num_actions) == (1.2, 0.4, 0, 6)
    act, marks = decision.turn.of_kind(KIND.ACT)[0], parallel.vocabulary.mark_ids
    assert decision.turn.token_ids[act.start : act.end].tolist() == [marks["<act>"], *block(parallel)]
    assert decision.turn.token_ids[act.end :].tolist() == [marks["</act>"]]
    assert act.text == parallel.vocabulary.decode(block(parallel))
    assert play(parallel, "ACT", mode="act")[1].requests[0].temperature == 1.0


@pytest.mark.parametrize(("mode", "texts", "expected"), [CASES[0], *CASES[2:3], *CASES[4:]])
def test_of_a_chunk_the_actions_that_were_executed_are_learned_from(processor, mode, texts, expected):
    """Also where the `<act>` before it is the policy's own, and hence the first token of its segment."""
    decision, sampler = play(processor, *texts, mode=mode)
    decider = Thinker(processor).decider(sampler, EpisodeConfig(mode=mode))
    num_dims = decision.actions.shape[1]
    turn = decider.executed(decision.turn, decision.actions[:1])
    left_out = turn.token_ids[decision.turn.loss_mask & ~turn.loss_mask]
    assert processor.vocabulary.bins(left_out.tolist()) == BINS[num_dims:]
    assert turn.num_sampled_tokens == decision.turn.num_sampled_tokens  # produced all the same
    assert decider.executed(decision.turn, decision.actions).segments == decision.turn.segments


def test_behind_a_reused_thought_the_action_is_all_that_is_asked_for(processor):
    first, _ = play(processor, "<think>look</think><act>ACT", think_every=2)
    assert (first.memory.reuses, first.memory.thought.text) == (True, "look")
    decision, sampler = play(processor, "ACT", memory=first.memory, think_every=2)
    assert kinds(decision) == [KIND.PROMPT, KIND.PROMPT, KIND.PROMPT, KIND.ACT]
    (request,) = sampler.requests
    text = processor.vocabulary.encode("<think>look</think><act>")
    compact = [*processor.prompt_ids(tiny.INSTRUCTION, 1), *text]
    assert (list(request.prompt_ids), request.num_actions) == (compact, processor.decoding.num_slots)
    context = processor.expand(compact, SEEN.images).tolist()
    assert decision.turn.token_ids[: len(context)].tolist() == context
    assert is_well_formed(decision.turn)
    assert not decision.memory.reuses
    full, sampler = play(processor, memory=first.memory, think_every=2, max_turn_tokens=len(context))
    assert (full.end, sampler.requests) == (EndReason.CONTEXT_FULL, [])


@pytest.mark.parametrize(
    ("text", "error", "mode"),
    [
        ("<think>look<act>", "<act> inside <think>", "zoom"),
        ("press<act>", "expected <think>", "zoom"),
        ("<think>a</think><think>b</think><act>", "two thoughts", "zoom"),
        ("<think>a</think>", "ends before", "zoom"),
        ("</act>", "expected <think>", "zoom"),
        ("<think>a<think>b</think>", "<think> inside", "think"),
        ("press</think>", "expected <think>", "think"),
    ],
)
def test_broken_markup_draws_no_action(processor, text, error, mode):
    decision, sampler = play(processor, text, mode=mode)
    assert (decision.actions, decision.end) == (None, EndReason.MALFORMED)
    assert error in decision.turn.segments[-1].error
    assert len(sampler.requests) == 1
    assert decision.turn.loss_mask[decision.turn.segments[0].end :].all()


@pytest.mark.parametrize(
    ("text", "error"), [("<act><act_1></act>", "1 action tokens"), ("<act>move</act>", "a token that is no action")]
)
def test_text_that_acts_must_hold_a_chunk(tiny_policy, text, error):
    decision, _ = play(PolicyProcessor.load(tiny_policy), text)
    assert decision.end is EndReason.MALFORMED
    assert error in decision.turn.segments[-1].error


@pytest.mark.parametrize(("spare", "end"), [(0, None), (-1, EndReason.CONTEXT_FULL)])
def test_a_block_needs_room_for_itself_and_its_end(parallel, spare, end):
    whole, _ = play(parallel, "<think>press</think><act>ACT")
    length = len(whole.turn.token_ids)
    decision, _ = play(parallel, "<think>press</think><act>ACT", max_turn_tokens=length + spare)
    assert decision.end is end
    if end is not None:
        assert decision.turn.is_malformed
        assert not is_well_formed(decision.turn)
        assert len(decision.turn.token_ids) == length - tiny.NUM_ACTIONS - 1


@pytest.mark.parametrize("answer", [[1, 2, 3, 4, 5, 6], "few"])
def test_a_sampler_that_answers_no_actions_is_an_error_of_ours(parallel, answer):
    ids = block(parallel)[:2] if answer == "few" else answer
    with pytest.raises((RuntimeError, ValueError), match="asked for 6 action"):
        decided(parallel, scripted(parallel, ["<think>press</think><act>", ids]), SEEN)


def test_an_action_temperature_needs_a_parallel_policy(tiny_policy: Path):
    with pytest.raises(ValueError, match=r"episode\.action_temperature is 0\.5: this checkpoint decodes actions like"):
        play(PolicyProcessor.load(tiny_policy), action_temperature=0.5)
    with pytest.raises(ValueError, match=r"episode\.action_temperature must be above 0"):
        GRPOConfig(episode=EpisodeConfig(action_temperature=0.0))
    greedy = [EpisodeConfig(temperature=0.0, action_temperature=t).is_greedy for t in (None, 0.0, 1.0)]
    assert greedy == [True, True, False]


def test_blocks_are_the_actions_and_the_mark_before_them(parallel):
    vocabulary = parallel.vocabulary
    open_id, close_id, action = vocabulary.mark_ids["<act>"], vocabulary.mark_ids["</act>"], vocabulary.action_ids[2]
    ids = torch.tensor([[5, open_id, action, action, close_id, 0], [5, action, open_id, action, close_id, 5]])
    is_act = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    inputs = parallel.forward_inputs(ids, torch.ones_like(ids), is_act)
    assert inputs["is_slot"].int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert inputs["block_ids"].tolist() == [[0, 2, 2, 2, 0, 0], [0, 0, 2, 2, 0, 0]]  # 1 is a prompt's
    assert torch.equal(inputs["block_ids"], block_ids(inputs["is_slot"]))
    is_act[1, 5] = True
    with pytest.raises(ValueError, match="a token that is no action"):
        parallel.forward_inputs(ids, torch.ones_like(ids), is_act)
    with pytest.raises(ValueError, match="need is_act"):
        parallel.forward_inputs(ids, torch.ones_like(ids))
