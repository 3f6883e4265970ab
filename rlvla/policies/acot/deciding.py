"""One decision of ACoT: a reference motion and a chunk of actions are drawn, and the first of them executed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlvla.config import EpisodeConfig, FlowEpisodeConfig
from rlvla.policies.acot.prompts import Prompts
from rlvla.policies.wordless import Settings
from rlvla.protocols import Decided, InEnv, Sampler, SampleRequest
from rlvla.types import Observation, Segment, SegmentKind, Turn

LEVEL, SCALE = "noise_level", "noise_scale"
"""Latents, of which a turn has one: how much noise Flow-SDE, or Flow-Noise, has added."""
LAST = "last_logprobs"
"""Latent of what was just drawn, [H]: each action's part in the head's log-probability, of the last step alone."""


@dataclass(frozen=True, kw_only=True)
class FlowDecider:
    """A `protocols.Decider`; it remembers nothing."""

    sampler: Sampler
    settings: Settings
    prompts: Prompts
    episode: EpisodeConfig

    async def decide(self, observation: Observation, in_env: InEnv, *, seed: int, memory: Any = None) -> Decided:
        """See `protocols.Decider`."""
        started = time.perf_counter()
        flow, temperature = self.episode.flow, self.episode.temperature
        horizon, action_size = self.settings.chunk_shape
        num_actions = flow.execute or horizon
        given = {
            "instruction": self.prompts.ids(observation.instruction, observation.proprio),
            "executed": np.array([num_actions], np.int32),
            **manner(flow, temperature),
        }
        output = await self.sampler.sample(
            SampleRequest(
                images=observation.images,
                temperature=temperature,
                seed=seed,
                latents=given | {"is_noisy": np.array(noisy(flow, temperature), np.int32)},
            )
        )
        latents = dict(output.latents)
        chunk = latents.pop("actions")[:num_actions, :action_size]
        turn = Turn(
            token_ids=output.token_ids,
            sampler_logprobs=output.logprobs,
            segments=(Segment(kind=SegmentKind.ACT, start=0, end=len(output.token_ids)),),
            images=observation.images,
            actions=self.settings.actions.restored(chunk),
            policy_version=output.policy_version,
            latency_s=time.perf_counter() - started,
            latents=given | latents,
        )
        return Decided(turn=turn, actions=turn.actions)

    def executed(self, turn: Turn, actions: np.ndarray) -> Turn:
        """See `protocols.Decider`.

        An action that the env did not take any more is left out of the log-probability where it cannot have had a say:
        if the last step of the head's integration was noisy, then of that step, for both what the sampler has told and
        what the learner will find. Noise of an earlier step has gone through the network, and into all actions, so that
        leaving a part of it out would bias the gradient. (RLinf counts the actions to be executed in any step.)
        """
        latents = dict(turn.latents)
        last = latents.pop(LAST, np.zeros(0, np.float32))
        logprobs = turn.sampler_logprobs.copy()
        if len(last):
            logprobs[-1] -= last[len(actions) : len(turn.actions)].sum(dtype=np.float64)
        latents["executed"] = np.array([len(actions)], np.int32)
        return replace(turn, actions=actions, sampler_logprobs=logprobs, latents=latents)


def manner(flow: FlowEpisodeConfig, temperature: float) -> Mapping[str, np.ndarray]:
    """How integrations are drawn, as latents."""
    name, amount = (LEVEL, flow.level * temperature) if flow.method == "sde" else (SCALE, temperature)
    return {"num_steps": np.array([flow.num_steps], np.int32), name: np.array([amount], np.float32)}


def noisy(flow: FlowEpisodeConfig, temperature: float) -> tuple[bool, bool]:
    """Whether there is noise in the integration of the reference motion, and in that of the actions."""
    return (temperature > 0 and flow.where != "head", temperature > 0 and flow.where != "reference")
