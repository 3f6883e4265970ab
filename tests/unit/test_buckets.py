"""Weights in buckets: their sizes and bits, what of a model makes which of them, and how a sampler takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.core_model_loading import Chunk, WeightConverter

from rlvla.cluster.weight_sync import Incoming
from rlvla.policies.buckets import Bucket, Part, Weights, make_buckets, pack, runs, unpack
from rlvla.policies.weights import load_model, named_weights, weight_parts
from rlvla.samplers.local import BatchedSampler
from tests.learning import make_learner
from tests.tiny_checkpoints import ARCHITECTURES, build


@given(st.lists(st.integers(0, 50)), st.integers(1, 100))
def test_runs_hold_all_in_order_and_no_more_than_they_may(sizes: list[int], largest: int) -> None:
    cut = runs(sizes, largest)
    assert [index for run in cut for index in range(len(sizes))[run]] == list(range(len(sizes)))
    assert all(sum(sizes[run]) <= largest or run.stop - run.start == 1 for run in cut)
    totals = [sum(sizes[run]) for run in cut]
    assert all(total + sizes[after.start] > largest for total, after in zip(totals, cut[1:], strict=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4)])
def test_a_tensor_comes_out_as_it_went_in_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 1e3).to(dtype)
    packed = pack(tensor)
    packed.data.setflags(write=False)  # as it comes out of Ray's store
    again = unpack(packed)
    assert (again.dtype, again.shape) == (dtype, tensor.shape)
    assert torch.equal(again, tensor)
    turned = torch.arange(12.0).view(3, 4).T
    assert torch.equal(unpack(pack(turned)), turned)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_buckets_are_the_learners_weights_themselves_in_its_dtype(checkpoint: Path, dtype: str) -> None:
    """The largest tensor is larger than a bucket."""
    learner = make_learner(checkpoint, dtype=dtype)
    model, policy = learner._engine.model.module, learner._policy
    expected = dict(named_weights(model))
    largest = max(tensor.nbytes for tensor in expected.values())
    sent = learner._engine.changes(policy, largest // 2)
    assert isinstance(sent, Weights)
    assert sent.names == expected.keys()
    assert sent.num_alive == 2
    found: dict[str, torch.Tensor] = {}
    buckets = list(sent.buckets)
    for bucket in buckets:
        tensors = {name: unpack(packed) for name, packed in bucket.items()}
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= largest // 2
        found |= tensors
    learner.close()
    assert 2 < len(buckets) < len(expected)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(found[name], tensor), name
        assert found[name].data_ptr() == tensor.data_ptr(), f"{name} was copied"


def models() -> Iterator[tuple[str, torch.nn.Module, int, int]]:
    """(name, model, most parameters of a part, most weights of a part)."""
    for architecture in ARCHITECTURES:
        yield architecture, build(architecture, ["press the red pad"], 8)[0], 1, 1
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    # One parameter holds the experts that the checkpoint has apart.
    yield "mixtral", MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=3)), 1, 6
    # The checkpoint has in one weight what the model holds in two.
    fused = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    parts = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    fused._weight_conversions = [WeightConverter("mlp.gate_up_proj.weight", parts, [Chunk(dim=0)])]
    yield "fused", fused, 4, 2


@pytest.mark.parametrize(("name", "model", "most_held", "most_made"), models(), ids=lambda value: str(value)[:12])
def test_parts_make_the_weights_of_the_whole(name: str, model: torch.nn.Module, most_held: int, most_made: int) -> None:
    whole, parts = dict(named_weights(model)), weight_parts(model)
    assert (max(len(p.held) for p in parts), max(len(p.names) for p in parts)) == (most_held, most_made)
    assert len(parts) > 1
    for num_bytes in (1, 10_000, 10**9):
        asked: list[Part] = []

        def named(part: Part, asked: list[Part] = asked) -> Iterator[tuple[str, torch.Tensor]]:
            asked.append(part)
            return named_weights(model, part)

        buckets = list(make_buckets(parts, num_bytes, named))
        assert all(part.num_bytes <= num_bytes or len(part.held) <= most_held for part in asked)
        assert all(len(b) == 1 or sum(p.data.nbytes for p in b.values()) <= num_bytes for b in buckets)
        made = [(key, packed) for bucket in buckets for key, packed in bucket.items()]
        assert len(made) == len(whole)
        assert all(torch.equal(unpack(packed), whole[key]) for key, packed in made)


def test_a_sampler_takes_them_in_place_or_where_it_has_no_place_anew(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, model = BatchedSampler(checkpoint), load_model(checkpoint)
    places = {name: tensor.data_ptr() for name, tensor in sampler._model.state_dict().items()}
    for sign, is_view in ((-1, True), (-2, False)):
        expected = {name: sign * tensor for name, tensor in named_weights(model)}
        weights = Weights(names=frozenset(expected), buckets=[{n: pack(t)} for n, t in expected.items()])
        if not is_view:  # as of a model that holds its weights in another form
            monkeypatch.setattr(
                type(sampler._policy), "named_weights", lambda _, m: ((n, t.clone()) for n, t in named_weights(m))
            )
        sampler.load_weights(weights, 1)
        now = dict(named_weights(sampler._model))
        assert all(torch.equal(now[name], tensor) for name, tensor in expected.items())
        state = sampler._model.state_dict()
        assert all((state[name].data_ptr() == place) == is_view for name, place in places.items())


def test_other_names_are_refused_before_a_bucket_is_asked_for(checkpoint: Path) -> None:
    def buckets() -> Iterator[Bucket]:
        raise AssertionError("a bucket was asked for")
        yield

    sampler = BatchedSampler(checkpoint)
    with pytest.raises(ValueError, match="1 weights are missing or not in the checkpoint, among them other"):
        sampler.load_weights(Weights(names=sampler._weight_names | {"other"}, buckets=buckets()), 1)


def test_a_bucket_is_empty_before_the_next_is_asked_for_and_half_of_them_is_an_error() -> None:
    incoming, seen = Incoming(), []
    with ThreadPoolExecutor(1) as pool:
        asked = threading.Event()

        def go_through() -> None:
            for bucket in incoming:
                seen.append(set(bucket))
                asked.wait(30)

        thread = pool.submit(go_through)
        buckets: list[Bucket] = [{name: pack(torch.ones(1))} for name in "ab"]
        taken = incoming.give(buckets[0])
        assert not taken.done()
        asked.set()
        taken.result(30)
        assert buckets[0] == {}
        incoming.give(buckets[1]).result(30)
        incoming.end(is_whole=False)
        with pytest.raises(RuntimeError, match="the weights came in part only"):
            thread.result(30)
    assert seen == [{"a"}, {"b"}]
