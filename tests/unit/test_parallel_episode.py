"""Episodes, demonstrations and checkpoints of a policy that decodes its actions in parallel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.cluster.actors import SamplerActor, SamplerClosedError
from rlvla.config import EpisodeConfig, GRPOConfig, SamplerConfig, SFTConfig, TinyModelConfig
from rlvla.data.dataset import DemonstrationSet, read, write
from rlvla.data.types import Demonstration
from rlvla.policies.thinker import policy
from rlvla.policies.thinker.action_slots import add_slots, block_ids, feed_slots, parallel_inputs
from rlvla.policies.thinker.cold_start import start_policy, to_turn
from rlvla.policies.thinker.markup import print_think, print_zoom
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import load_tools
from rlvla.policies.thinker.turn_context import Recall, executed
from rlvla.protocols import SampleRequest
from rlvla.rollout.episode import Decider, Decision, EnvThread, decide
from rlvla.samplers.local import TransformersSampler
from rlvla.testing import ScriptedSampler
from rlvla.types import EndReason, Observation, SegmentKind
from rlvla_reward.format import is_well_formed
from tests import parallel_policies as tiny

KIND = SegmentKind
CROP = tiny.image(9)
ZOOM = print_zoom(0, (100, 250, 300, 450))
BINS = [3, 1, 4, 1, 5, 2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save("idefics3", tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def processor(checkpoint) -> PolicyProcessor:
    return PolicyProcessor.load(checkpoint)


def play(
    processor: PolicyProcessor, texts: list[str], recall: Recall | None = None, **config: Any
) -> tuple[Decision, ScriptedSampler]:
    """A decision whose sampler says these texts, and its sampler; `ACT` is a block of actions."""
    vocabulary = processor.vocabulary
    block = [vocabulary.action_ids[bin_] for bin_ in BINS]
    script = [block if text == "ACT" else vocabulary.encode(text) for text in texts]
    sampler = ScriptedSampler(script=script, expand=processor.expand)
    episode = EpisodeConfig(**config)
    decider = Decider(sampler=sampler, processor=processor, tools=load_tools(episode.tools), config=episode)
    observation = Observation(
        images=(tiny.image(0),), proprio=np.zeros(4), instruction=tiny.INSTRUCTION, zoom=lambda image, box: CROP
    )
    thread = EnvThread(lambda: None)  # type: ignore[arg-type, return-value]
    decision = asyncio.run(decide(decider, observation, thread, seed=0, recall=recall))
    thread.close()
    return decision, sampler


def kinds(decision: Decision) -> list[SegmentKind]:
    return [segment.kind for segment in decision.turn.segments]


def test_the_policy_chooses_to_act_and_the_block_is_a_request_of_its_own(processor):
    texts = [f"<think>look</think>{ZOOM}", "<think>press</think><act>", "ACT"]
    decision, sampler = play(processor, texts, temperature=1.2, action_temperature=0.4)
    assert kinds(decision) == [
        KIND.PROMPT,
        KIND.THINK,
        KIND.TOOL_CALL,
        KIND.TOOL_RESULT,
        KIND.THINK,
        KIND.ACT,
        KIND.PROMPT,
    ]
    marks, vocabulary = processor.vocabulary.mark_ids, processor.vocabulary
    block = [vocabulary.action_ids[bin_] for bin_ in BINS]
    act = decision.turn.of_kind(KIND.ACT)[0]
    assert decision.turn.token_ids[act.start : act.end].tolist() == [marks["<act>"], *block]
    assert decision.turn.token_ids[act.end :].tolist() == [marks["</act>"]]
    assert act.text == vocabulary.decode(block)
    assert np.array_equal(decision.actions, processor.codec.decode(np.array(BINS)))
    assert (decision.turn.sampler_logprobs != 0).tolist() == decision.turn.loss_mask.tolist()
    assert is_well_formed(decision.turn)
    text, _, actions = sampler.requests
    assert (text.stop_ids, text.banned_ids) == ((marks["</tool>"], marks["<act>"]), vocabulary.slot_ids)
    assert (text.temperature, actions.temperature, text.num_actions, actions.num_actions) == (1.2, 0.4, 0, 6)
    assert actions.prompt_ids[-1] == marks["<act>"]
    assert (actions.action_ids, actions.slot_ids) == (vocabulary.action_ids, vocabulary.slot_ids)
    assert actions.seed not in (text.seed, 0)
    prompt = decision.turn.segments[0]
    assert [request.num_prefix_tokens for request in sampler.requests] == [prompt.end] * 3


@pytest.mark.parametrize(("texts", "mode"), [(["<think>press</think><act>", "ACT"], "zoom"), (["ACT"], "act")])
def test_of_a_block_the_actions_that_were_executed_are_learned_from(processor, texts, mode):
    """Also where the `<act>` before it is the policy's own, and hence the first token of its segment."""
    decision, _ = play(processor, texts, mode=mode)
    assert decision.actions is not None
    num_dims = decision.actions.shape[1]
    turn = executed(decision.turn, decision.actions[:1], processor)
    left_out = turn.token_ids[decision.turn.loss_mask & ~turn.loss_mask]
    assert processor.vocabulary.bins(left_out.tolist()) == BINS[num_dims:]
    assert executed(decision.turn, decision.actions, processor).segments == decision.turn.segments


def test_without_thought_the_block_is_all_that_is_asked_for(processor):
    decision, sampler = play(processor, ["ACT"], mode="act")
    assert kinds(decision) == [KIND.PROMPT, KIND.PROMPT, KIND.ACT, KIND.PROMPT]
    assert decision.turn.num_sampled_tokens == tiny.NUM_ACTIONS == sampler.requests[0].num_actions
    assert sampler.requests[0].temperature == 1.0
    assert sampler.requests[0].num_prefix_tokens == decision.turn.num_prefix_tokens == decision.turn.segments[1].start
    assert decision.actions is not None


def test_without_zoom_an_act_mark_follows_the_thought(processor):
    decision, sampler = play(processor, ["<think>look</think>", "ACT"], mode="think")
    assert kinds(decision) == [KIND.PROMPT, KIND.THINK, KIND.PROMPT, KIND.ACT, KIND.PROMPT]
    marks = processor.vocabulary.mark_ids
    assert sampler.requests[0].stop_ids == (marks["</think>"], marks["<act>"])
    assert set(sampler.requests[0].banned_ids) == {marks["<tool>"], *processor.vocabulary.slot_ids}
    assert is_well_formed(decision.turn)


def test_behind_a_reused_thought_the_block_is_all_that_is_asked_for(processor):
    first, _ = play(processor, ["<think>look</think><act>", "ACT"], think_every=2)
    recall = Recall().after(first.turn, think_every=2, carry_thought=False)
    decision, sampler = play(processor, ["ACT"], recall, think_every=2)
    assert kinds(decision) == [KIND.PROMPT, KIND.PROMPT, KIND.PROMPT, KIND.ACT, KIND.PROMPT]
    (request,) = sampler.requests
    vocabulary = processor.vocabulary
    compact = [*processor.prompt_ids(tiny.INSTRUCTION, 1), *vocabulary.encode("<think>look</think><act>")]
    assert (list(request.prompt_ids), request.num_actions) == (compact, tiny.NUM_ACTIONS)
    context = [*processor.expand(compact, [tiny.image(0)]).tolist(), vocabulary.mark_ids["</act>"]]
    assert decision.turn.token_ids[~decision.turn.loss_mask].tolist() == context
    assert decision.turn.num_sampled_tokens == tiny.NUM_ACTIONS
    assert is_well_formed(decision.turn)


def test_a_reused_thought_may_leave_no_room(processor):
    first, _ = play(processor, ["<think>look</think><act>", "ACT"], think_every=2)
    recall = Recall().after(first.turn, think_every=2, carry_thought=False)
    decision, sampler = play(processor, [], recall, think_every=2, max_turn_tokens=len(first.turn.token_ids) - 1)
    assert (decision.end, sampler.requests) == (EndReason.CONTEXT_FULL, [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<think>look<act>", "<act> inside <think>"),
        ("press<act>", "expected <think>"),
        ("<think>a</think><think>b</think><act>", "two thoughts"),
        ("<think>a</think>", "ends before"),
        ("</act>", "expected <think>"),
    ],
)
def test_broken_markup_draws_no_action(processor, text, error):
    decision, sampler = play(processor, [text])
    assert decision.end is EndReason.MALFORMED
    assert error in decision.turn.segments[-1].error
    assert len(sampler.requests) == 1
    assert decision.turn.loss_mask[decision.turn.segments[0].end :].all()


@pytest.mark.parametrize(("spare", "end"), [(0, None), (-1, EndReason.CONTEXT_FULL)])
def test_a_block_needs_room_for_itself_and_its_end(processor, spare, end):
    whole, _ = play(processor, ["<think>press</think><act>", "ACT"])
    length = len(whole.turn.token_ids)
    decision, _ = play(processor, ["<think>press</think><act>", "ACT"], max_turn_tokens=length + spare)
    assert decision.end is end
    if end is not None:
        assert decision.turn.is_malformed
        assert not is_well_formed(decision.turn)
        assert len(decision.turn.token_ids) == length - tiny.NUM_ACTIONS - 1


def test_a_sampler_that_answers_no_actions_is_an_error_of_ours(processor):
    with pytest.raises(ValueError, match="asked for 6 action tokens"):
        play(processor, ["<think>press</think><act>", "<act_1>"])


def test_an_action_temperature_needs_a_parallel_policy(processor, tiny_policy):
    with pytest.raises(ValueError, match=r"episode\.action_temperature is 0\.5: this checkpoint decodes actions like"):
        play(PolicyProcessor.load(tiny_policy), [], action_temperature=0.5)
    with pytest.raises(ValueError, match=r"episode\.action_temperature must be above 0"):
        GRPOConfig(episode=EpisodeConfig(action_temperature=0.0))
    assert [EpisodeConfig(temperature=0.0, action_temperature=t).is_greedy for t in (None, 0.0, 1.0)] == [
        True,
        True,
        False,
    ]


def demonstration(**changes: Any) -> Demonstration:
    given = Demonstration(
        instruction=tiny.INSTRUCTION,
        images=(tiny.image(0),),
        proprio=np.zeros(4, np.float32),
        texts=(print_think("look 100 200") + ZOOM, print_think("press 100 200")),
        crops=(CROP,),
        actions=np.linspace(-0.9, 0.9, 6, dtype=np.float32).reshape(3, 2),
    )
    return replace(given, **changes)


@pytest.mark.parametrize("texts", [1, 2])
def test_a_demonstration_is_the_turn_that_the_policy_would_have_sampled(processor, texts):
    codec = replace(processor.codec, low=(-1.0, -1.0), high=(1.0, 1.0))
    codec_processor = replace(processor, codec=codec)
    demo = demonstration()
    demo = replace(demo, texts=demo.texts[-texts:], crops=demo.crops[: texts - 1], actions=codec.decode(np.array(BINS)))
    decision, _ = play(codec_processor, [*demo.texts[:-1], f"{demo.texts[-1]}<act>", "ACT"])
    turn = to_turn(codec_processor, demo)
    assert turn.token_ids.tolist() == decision.turn.token_ids.tolist()
    assert turn.loss_mask.tolist() == decision.turn.loss_mask.tolist()
    expected = [(s.kind, s.start, s.end) for s in decision.turn.segments]
    assert [(s.kind, s.start, s.end) for s in turn.segments] == expected


def data_set(path: Path) -> DemonstrationSet:
    rng = np.random.default_rng(0)
    episodes = [[demonstration(actions=rng.uniform(-1, 1, (3, 2)).astype(np.float32))] for _ in range(5)]
    write(path, episodes, robot="test", fps=1.0, suites=("new",))
    return read(path)


@pytest.mark.parametrize("is_given", [False, True])
def test_a_parallel_policy_starts_with_slots_of_zeros(tmp_path, tiny_policy, is_given):
    cfg = SFTConfig(
        model=str(tiny_policy) if is_given else "",
        tiny=TinyModelConfig(hidden_size=64, num_layers=1, vision_layers=1),
        num_bins=16,
        statistics_key="demonstrations",  # whose chunks have another shape than the given policy's
        action_decoding="parallel",
    )
    model, processor = start_policy(cfg, data_set(tmp_path / "demos"))
    slots, size = list(processor.vocabulary.slot_ids), len(processor.hf_processor.tokenizer)
    assert slots == list(range(size - 6, size))
    assert (model.get_input_embeddings().weight[slots] == 0).all()
    policy.save_policy(model, processor, tmp_path / "policy")
    again = PolicyProcessor.load(tmp_path / "policy")
    assert (again.is_parallel, list(again.vocabulary.slot_ids)) == (True, slots)
    with torch.no_grad():
        model.get_input_embeddings().weight[slots] = 1
    add_slots(model, processor.hf_processor, 6)  # they are there: what they learned stays
    assert (model.get_input_embeddings().weight[slots] == 1).all()
    add_slots(model, processor.hf_processor, 8)  # a longer chunk
    assert model.get_input_embeddings().weight[slots[0] :].sum(1).tolist() == [64] * 6 + [0] * 2


def test_a_checkpoint_from_before_decodes_as_it_always_did(tiny_policy):
    processor = PolicyProcessor.load(tiny_policy)
    assert (processor.prefix_attention, processor.is_hybrid) == ("causal", False)
    assert (processor.action_decoding, processor.is_parallel, processor.vocabulary.slot_ids) == (
        "autoregressive",
        False,
        (),
    )
    with pytest.raises(ValueError, match=r"no token '<slot_0>'; add it with rlvla\..*\.action_slots\.add_slots"):
        PolicyProcessor.create(processor.hf_processor, processor.codec, False, action_decoding="parallel")


def test_a_sampler_actor_draws_with_the_backend_that_the_config_names(checkpoint, processor, monkeypatch):
    config = SamplerConfig(backend="transformers", dtype="bfloat16", threads=2)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    actor = SamplerActor(checkpoint, config, max_images=1, max_model_len=64, seed=0)
    assert threads == [2]
    request = SampleRequest(
        prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 1),
        images=(tiny.image(0),),
        stop_ids=(),
        max_tokens=5,
        temperature=0.0,
        seed=0,
    )
    with pytest.raises(SamplerClosedError, match="waits for its weights"):
        asyncio.run(actor.sample(request))
    asyncio.run(actor.open())
    before = asyncio.run(actor.sample(request))
    weights = {name: -tensor.numpy() for name, tensor in policy.named_weights(policy.load_model(checkpoint))}
    asyncio.run(actor.load_weights(weights, 7))
    after = asyncio.run(actor.sample(request))
    asyncio.run(actor.close())
    assert (before.policy_version, after.policy_version) == (0, 7)
    assert (before.logprobs != after.logprobs).all()
    # float32 would give other digits: the logits of bfloat16 weights have 8 bits
    exact = asyncio.run(TransformersSampler(checkpoint).sample(request))
    assert 0 < np.abs(before.logprobs - exact.logprobs).max() < 0.1


def test_blocks_are_the_actions_and_the_mark_before_them(processor):
    vocabulary = processor.vocabulary
    open_id, close_id, action = vocabulary.mark_ids["<act>"], vocabulary.mark_ids["</act>"], vocabulary.action_ids[2]
    ids = torch.tensor([[5, open_id, action, action, close_id, 0], [5, action, open_id, action, close_id, 5]])
    is_act = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    inputs = parallel_inputs(vocabulary, ids, is_act)
    assert inputs["is_slot"].int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert block_ids(inputs["is_slot"]).tolist() == [[0, 2, 2, 2, 0, 0], [0, 0, 2, 2, 0, 0]]  # 1 is a prompt's
    is_act[1, 5] = True
    with pytest.raises(ValueError, match="a token that is no action"):
        parallel_inputs(vocabulary, ids, is_act)
    with pytest.raises(ValueError, match="need is_act"):
        processor.forward_inputs(ids, torch.ones_like(ids))


def test_each_action_of_every_block_is_fed_a_slot_of_its_own():
    is_slot = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 1, 1]]).bool()
    fed = feed_slots(torch.arange(16).view(2, 8), is_slot, torch.tensor([100, 101]))
    assert fed.tolist() == [[0, 1, 100, 101, 4, 5, 100, 101], [8, 100, 101, 11, 12, 13, 100, 101]]
