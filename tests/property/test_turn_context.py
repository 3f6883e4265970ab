"""Which decisions think, and what the others go by, against a definition over the whole episode."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlvla.policies.thinker.turn_context import Recall
from tests.examples import act, think, turn

TURNS = st.lists(st.lists(st.text("ab", min_size=1, max_size=4), max_size=2), max_size=9)
"""What is thought in each turn, if it thinks: none, one or two thoughts."""


@given(turns=TURNS, think_every=st.integers(1, 4))
def test_every_nth_decision_thinks_and_the_others_go_by_its_last_thought(
    turns: list[list[str]], think_every: int
) -> None:
    last = [texts[-1] if texts else "" for texts in turns]
    recall = Recall()
    for i, texts in enumerate(turns):
        thinking = i - i % think_every  # the turn whose thought counts at i
        assert recall.num_decisions == i
        assert recall.reuses == (i != thinking)
        if recall.reuses:
            assert recall.thought.text == last[thinking]
            assert (len(recall.thought.token_ids) > 0) == bool(turns[thinking])
        played = turn(*([] if recall.reuses else map(think, texts)), act(), seed=i)
        if not recall.reuses and texts:
            ids = played.token_ids[-18:-8]  # of the last thought, before the action's eight
        recall = recall.after(played, think_every=think_every)
        if last[thinking]:
            assert recall.thought.token_ids.tolist() == ids.tolist()
