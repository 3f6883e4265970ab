"""The simulation of a step: what can be said by hand, limits, and that nothing is lost."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from rlvla.plan.costs import Costs, Episode, Machine, Pass, Simulated
from rlvla.plan.simulation import simulate

COSTS = Costs(
    decode=((1, 0.01), (101, 0.02)), reset_s=0.5, chunk_s=0.25, request_s=0.001, learn_token_s=0.001, sync_s=0.1
)
MACHINE = Machine(num_slots=8, num_samplers=2, max_num_seqs=16)


def turns(num: int, tokens: int = 10) -> tuple[tuple[Pass, ...], ...]:
    look = Pass(num_new_tokens=100, num_pictures=1, num_steps=tokens, zooms=True)
    act = Pass(num_new_tokens=20, num_pictures=1, num_steps=1)
    return ((look, act),) * num


def group(*lengths: int, scene: int = 0) -> list[Episode]:
    return [Episode(scene=scene, turns=turns(num), num_tokens=100 * num) for num in lengths]


MIXED = [group(1 + i % 3, 2, 5, 1 + i % 7, scene=i % 2) for i in range(12)]


def alone_s(episode: Episode, costs: Costs = COSTS) -> float:
    """An episode in an env and a sampler of its own."""
    steps = sum(asked.num_steps for turn in episode.turns for asked in turn)
    requests = sum(len(turn) for turn in episode.turns)
    return costs.reset_s + len(episode.turns) * costs.chunk_s + steps * costs.step_s(1) + requests * costs.request_s


def rollout_s(machine: Machine, groups: list[list[Episode]], costs: Costs = COSTS, **given: Any) -> float:
    simulated = simulate(costs, machine, groups, len(groups), **given)
    return simulated.steps[0].rollout_s


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("cores", [1.0, 2.0, 1e9])
def test_every_episode_is_learned_from_once(max_staleness: int, cores: float) -> None:
    machine = replace(MACHINE, cores=cores, engine_on_cores=cores == 2)
    simulated = simulate(COSTS, machine, MIXED, 3, max_staleness=max_staleness)
    assert len(simulated.steps) == 4
    learned = 0.001 * sum(episode.num_tokens for episodes in MIXED for episode in episodes)
    assert sum(step.learn_s for step in simulated.steps) == pytest.approx(learned)
    assert all(step.staleness <= max_staleness for step in simulated.steps)
    assert max(step.staleness for step in simulated.steps) == max_staleness
    assert 0 < simulated.sampler_busy < 1
    assert 0 < simulated.learner_busy < 1


def test_the_same_input_gives_the_same_output() -> None:
    assert simulate(COSTS, MACHINE, MIXED, 3, max_staleness=1) == simulate(COSTS, MACHINE, MIXED, 3, max_staleness=1)


def test_one_slot_takes_the_sum_of_all() -> None:
    machine = Machine(num_slots=1)
    expected = sum(alone_s(episode) for episodes in MIXED for episode in episodes)
    assert rollout_s(machine, MIXED) == pytest.approx(expected)


def test_a_slot_and_a_sampler_for_each_take_the_longest() -> None:
    machine = Machine(num_slots=48, num_samplers=48)
    assert rollout_s(machine, MIXED) == pytest.approx(max(alone_s(e) for episodes in MIXED for e in episodes))


def test_without_env_time_the_sampler_bounds() -> None:
    costs = Costs(decode=((1, 0.01),))  # a batch takes as long as one sequence
    groups = [[Episode(scene=0, turns=turns(4))] * 16]
    # The first of a turn's requests wakes the sampler, and the others wait for the end of its step.
    least, waits = 4 * 11 * 0.01, 8 * 0.01
    assert rollout_s(Machine(num_slots=16, max_num_seqs=16), groups, costs) == pytest.approx(least + waits)
    # A batch of 4 takes the sixteen in four rounds.
    assert 4 * least <= rollout_s(Machine(num_slots=16, max_num_seqs=4), groups, costs) <= 4 * least + waits
    loaded = replace(costs, new_token_s=0.001, picture_s=0.01, admit_s=0.1)
    assert rollout_s(Machine(num_slots=1), [[Episode(scene=0, turns=turns(1))]], loaded) == pytest.approx(
        11 * 0.01 + 120 * 0.001 + 2 * 0.01 + 2 * 0.1
    )


def test_without_sampling_the_cores_bound() -> None:
    """Equal shares: 8 envs on 2 cores take four times as long, whatever each does."""
    costs = Costs(decode=((1, 0.0),), reset_s=1.0, chunk_s=0.5)
    groups = [group(2, 2, 2, 2), group(2, 2, 2, 2)]
    assert rollout_s(replace(MACHINE, cores=2), groups, costs) == pytest.approx(8 * 2 / 2)
    assert rollout_s(replace(MACHINE, cores=100), groups, costs) == pytest.approx(2)
    # The engine's steps are work for the same cores.
    costs = Costs(decode=((1, 1.0),))
    one = [[Episode(scene=0, turns=((Pass(num_new_tokens=0, num_pictures=0, num_steps=3),),))]]
    machine = Machine(num_slots=1, cores=0.5, engine_on_cores=True)
    assert rollout_s(machine, one, costs) == pytest.approx(3 / 0.5)


def test_another_scene_costs_and_is_avoided() -> None:
    costs = Costs(decode=((1, 0.0),), reset_s=1.0, scene_s=10.0)
    groups = [group(1, 1, scene=0), group(1, 1, scene=1), group(1, 1, scene=0), group(1, 1, scene=1)]
    # Each of the two slots ends with the scene that it has before it takes the other one.
    assert rollout_s(Machine(num_slots=2), groups, costs) == pytest.approx(2 * 10 + 8 / 2)


@pytest.mark.parametrize(("name", "amounts"), [("num_slots", (1, 2, 4, 8, 16, 48)), ("cores", (1.0, 2.0, 4.0, 64.0))])
def test_more_of_anything_is_never_slower_beyond_noise(name: str, amounts: tuple[float, ...]) -> None:
    seconds = [rollout_s(replace(MACHINE, **{name: amount}), MIXED) for amount in amounts]
    for fewer, more in itertools.pairwise(seconds):
        assert more <= 1.05 * fewer  # another order may leave a longer tail
    assert seconds[-1] < seconds[0] / 2


def phases(simulated: Simulated) -> list[tuple[float, float, float, float]]:
    return [(step.rollout_s, step.save_wait_s, step.learn_s, step.sync_s) for step in simulated.steps]


def test_at_staleness_0_a_step_is_the_sum_of_its_phases() -> None:
    simulated = simulate(COSTS, MACHINE, MIXED, 4)
    for i, (rollout, wait, learn, sync) in enumerate(phases(simulated)):
        own = MIXED[4 * i : 4 * i + 4]
        if i == 0:  # later ones find envs that have a scene
            assert rollout == pytest.approx(rollout_s(MACHINE, own))
        assert wait == 0
        assert learn == pytest.approx(0.001 * sum(e.num_tokens for episodes in own for e in episodes))
        assert sync == pytest.approx(COSTS.sync_s)  # nothing runs that would have to be drained
        assert simulated.steps[i].seconds == pytest.approx(rollout + learn + sync)


def test_rollouts_go_on_beside_the_learner() -> None:
    """With as long a rollout as an update, staleness 1 hides one of them; more cannot."""
    groups = [group(4, 4, 4, 4) for _ in range(8)]
    machine = Machine(num_slots=4)
    rollout = rollout_s(machine, groups[:1])
    costs = replace(COSTS, learn_token_s=rollout / 1600, sync_s=0.0)
    sync, fresh, stale = (simulate(costs, machine, groups, 1, max_staleness=n, settle=True) for n in (0, 1, 2))
    assert sync.mean("seconds") == pytest.approx(2 * rollout)
    assert rollout <= fresh.mean("seconds") < 1.1 * rollout
    assert rollout <= stale.mean("seconds") < 1.1 * rollout
    assert fresh.learner_busy > 1.7 * sync.learner_busy
    # Draining: samplers take weights between two requests, so that a sync is no shorter.
    assert all(step.sync_s >= 0 for step in fresh.steps)


def test_a_state_delays_only_what_it_outlasts() -> None:
    groups = [group(2, 2) for _ in range(4)]
    machine = Machine(num_slots=2)
    rollout = rollout_s(machine, groups[:1])
    quick, slow = (
        simulate(replace(COSTS, save_s=s), machine, groups, 1, save_every=1) for s in (rollout / 2, 3 * rollout)
    )
    assert [step.save_wait_s for step in quick.steps] == [0, 0, 0, 0]
    assert [step.save_wait_s for step in slow.steps] == pytest.approx([0, 2 * rollout, 2 * rollout, 2 * rollout])
    rare = simulate(replace(COSTS, save_s=3 * rollout), machine, groups, 1, save_every=3)
    assert [step.save_wait_s for step in rare.steps] == pytest.approx([0, 0, 0, 2 * rollout])


def test_the_tail_begins_with_the_first_idle_slot() -> None:
    costs = Costs(decode=((1, 0.0),), chunk_s=1.0)
    groups = [[Episode(scene=0, turns=turns(num)) for num in (1, 5)]]
    step = simulate(costs, Machine(num_slots=2), groups, 1).steps[0]
    assert (step.rollout_s, step.tail_s) == pytest.approx((5, 4))


def test_settled_steps_wait_for_what_was_not_given_out_at_the_start() -> None:
    """Envs are all that takes time, and one round of them plays `max_staleness + 1` steps at once."""
    costs = Costs(decode=((1, 0.0),), chunk_s=1.0)
    groups = [group(4, 4) for _ in range(14)]
    for n in (1, 2):
        whole, settled = (
            simulate(costs, Machine(num_slots=2 * (n + 1)), groups, 1, max_staleness=n, settle=settle)
            for settle in (False, True)
        )
        assert sum(step.seconds for step in whole.steps[1 : n + 1]) == 0  # their groups were given out at the start
        assert settled.steps == whole.steps[n + 1 : 14 - n]
        assert settled.mean("seconds") == pytest.approx(4 / (n + 1), rel=0.2)
    with pytest.raises(ValueError, match="3 groups, a step of 1 needs 4"):
        simulate(COSTS, MACHINE, groups[:3], 1, max_staleness=1, settle=True)


def test_a_coarser_look_changes_little() -> None:
    exact, coarse = (rollout_s(replace(MACHINE, steps_at_once=num), MIXED) for num in (1, 4))
    assert coarse == pytest.approx(exact, rel=0.05)
    assert coarse != exact
