"""What becomes a row, and how rows are shared out and padded."""

import numpy as np
import pytest

from rlvla.config import num_minibatches
from rlvla.learner import collate
from rlvla.learner.collate import KINDS, Row
from rlvla.types import EndReason, Group, SegmentKind
from tests.trajectories import TASK, make_trajectory, make_turn

ZOOMED = (
    (SegmentKind.PROMPT, 3),
    (SegmentKind.TOOL_CALL, 2),
    (SegmentKind.TOOL_RESULT, 2),
    (SegmentKind.ACT, 1),
)


def group(*trajectories) -> Group:
    return Group(task=TASK, trajectories=trajectories)


def row(length: int, trajectory: int = 0) -> Row:
    turn = make_turn(((SegmentKind.PROMPT, 1), (SegmentKind.ACT, length - 1)))
    return collate.to_row(turn, advantage=1.0, trajectory=trajectory)


def lengths(batches: list[list[Row]]) -> list[list[int]]:
    return [[r.num_tokens for r in batch] for batch in batches]


def test_every_live_turn_is_a_row_with_its_trajectorys_advantage():
    trajectories = make_trajectory([make_turn(), make_turn(ZOOMED)], advantage=0.5), make_trajectory(advantage=0.0)
    rows = collate.rows([group(*trajectories)], mask_context_full=True)
    assert [(r.trajectory, r.advantage, r.num_sampled_tokens) for r in rows] == [(0, 0.5, 5), (0, 0.5, 3), (1, 0.0, 5)]


@pytest.mark.parametrize(("mask_context_full", "num_rows"), [(True, 1), (False, 2)])
def test_crashes_and_turns_without_sampled_tokens_are_left_out(mask_context_full, num_rows):
    silent = make_turn(((SegmentKind.PROMPT, 5),))
    live = group(
        make_trajectory(end=EndReason.ENV_ERROR),
        make_trajectory(end=EndReason.CONTEXT_FULL, advantage=-1.0),
        make_trajectory([silent, make_turn()], advantage=1.0),
    )
    assert len(collate.rows([live], mask_context_full=mask_context_full)) == num_rows


def test_rows_need_advantages():
    with pytest.raises(ValueError, match="with_advantages"):
        collate.rows([group(make_trajectory())], mask_context_full=True)


def test_minibatches_keep_trajectories_whole_and_lose_none():
    rows = [row(3 + i, trajectory=i // 2) for i in range(10)]
    parts = collate.minibatches(rows, 2, np.random.default_rng(0))
    assert [len({r.trajectory for r in part}) for part in parts] == [3, 2]
    assert [len(part) for part in parts] == [6, 4]
    assert sorted(r.num_tokens for part in parts for r in part) == list(range(3, 13))


@pytest.mark.parametrize(
    ("num_trajectories", "size", "sizes"),
    [
        (385, 128, [97, 96, 96, 96]),
        (512, 128, [128] * 4),
        (129, 128, [65, 64]),
        (5, 8, [5]),
        (3, 2, [3]),
        (7, 2, [3, 2, 2]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_minibatches_are_of_nearly_equal_size_and_none_of_a_single_trajectory(num_trajectories, size, sizes):
    """A rest of one was a step of its own, in which a token weighed a hundred times as much as elsewhere."""
    parts = collate.minibatches([row(3, i) for i in range(num_trajectories)], size, np.random.default_rng(0))
    assert [len(part) for part in parts] == sizes
    assert len({r.trajectory for part in parts for r in part}) == num_trajectories
    assert num_minibatches(num_trajectories, size) == len(sizes)


def test_each_draw_deals_anew():
    rng, rows = np.random.default_rng(0), [row(3, i) for i in range(8)]
    first, second = ([{r.trajectory for r in p} for p in collate.minibatches(rows, 4, rng)] for _ in range(2))
    assert first != second


def test_ranks_share_rows_by_length_and_take_as_many_micro_batches():
    rows = [row(n) for n in (2, 9, 4, 7, 3)]
    assert lengths(collate.share(rows, 0, 2, max_rows=2)) == [[9], [3, 2]]
    assert lengths(collate.share(rows, 1, 2, max_rows=2)) == [[7], [4]]


def test_a_rank_without_rows_idles_on_a_copy_that_teaches_nothing():
    shares = [collate.share([row(4)], rank, 3, max_rows=8) for rank in range(3)]
    assert [lengths(share) for share in shares] == [[[4]]] * 3
    assert [share[0][0].num_sampled_tokens for share in shares] == [3, 0, 0]
    idle = collate.to_batch(shares[1][0])
    assert idle.weights.sum() == 0


def test_padding_stands_right_and_counts_nowhere():
    long = make_turn(ZOOMED, sampler_logprob=-2.0)
    short = make_turn(((SegmentKind.PROMPT, 2), (SegmentKind.ACT, 2)), token_ids=[9, 8, 7, 6])
    rows = [collate.to_row(long, advantage=1.0), collate.to_row(short, advantage=-1.0)]
    batch = collate.to_batch(rows)
    assert batch.turns == (long, short)
    assert batch.loss_mask.int().tolist() == [[0, 0, 0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0, 0]]
    assert batch.sampler_logprobs[0].tolist() == [0, 0, 0, -2, -2, 0, 0, -2]
    assert [KINDS[k] for k in batch.segment_kind[0]] == [kind for kind, n in ZOOMED for _ in range(n)]
    assert batch.advantages.tolist() == [1.0, -1.0]


def test_a_batch_moves_with_all_its_tensors():
    batch = collate.to_batch([row(4)]).to("meta")
    assert {t.device.type for t in (batch.loss_mask, batch.weights, batch.advantages)} == {"meta"}
    assert batch.old_logprobs is None
    assert len(batch.turns) == 1
