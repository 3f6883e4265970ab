"""Every config key, with its unit and the source of its default. Light: no torch, Ray, vLLM or DeepSpeed.

Defaults < YAML (`--config x.yaml`) < dotted flags (`--learner.lr 2e-6`). An unknown key is an error that names it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from rlvla.config.file import ConfigError, explain, read_yaml, without_gone
from rlvla.config.marks import Loose, MayChange, MovesNoScore

# Flags come in past pydantic, as instances; it has to look into those as well.
_FORBID: Any = ConfigDict(extra="forbid", allow_inf_nan=False, revalidate_instances="always")
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
C = TypeVar("C")
ActionDecoding = Literal["parallel", "parallel_causal", "autoregressive"]
"""See `SFTConfig.action_decoding`."""
ActionKind = Literal["delta", "absolute"]
"""See `ReadConfig.actions`."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which simulator, and which of its tasks."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    id: str = "rlvla/Tabletop-v0"
    """Gymnasium id; `my_lab.envs:Kitchen-v0` imports `my_lab.envs` first."""
    imports: tuple[str, ...] = ("rlvla_envs",)
    """Modules whose import registers ids; a rollout's env processes share them, and what else is named here."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the env's constructor."""
    tasks: MovesNoScore[tuple[str, ...]] = ()
    """Task names to run; empty: all that the env has."""
    deadline_s: Loose[float] = 60.0
    """Seconds that a chunk of env steps or a zoom may take in a rollout; then its process is killed and replaced."""
    reset_deadline_s: Loose[float] = 300.0
    """Seconds that a reset may take, likewise; in a new process it also imports the simulator and makes the env."""
    max_attempts: Loose[int] = 3
    """Times that a rollout plays an episode in which the simulator crashes, before it ends as ENV_ERROR."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the keys."""
        if self.deadline_s <= 0 or self.reset_deadline_s <= 0 or self.max_attempts < 1:
            raise ValueError(
                f"env.deadline_s is {self.deadline_s}, env.reset_deadline_s {self.reset_deadline_s}, need above 0; "
                f"env.max_attempts is {self.max_attempts}, need at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """Limits and modes of a turn."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    max_think_tokens: PositiveInt = 48
    """Tokens in one thought; a longer one is malformed."""
    max_tool_calls: NonNegativeInt = 3
    """Tool calls in one turn; a further call gets an error text as its result, and the next is malformed."""
    max_turn_tokens: PositiveInt = 512
    """Length of a turn, context included; beyond it the trajectory ends as CONTEXT_FULL."""
    mode: Literal["zoom", "think", "act"] = "zoom"
    """`zoom`: think and look closer; `think`: the `<tool>` token cannot be sampled, and a thought is followed by an
    injected `<act>`; `act`: the turn starts behind an injected `<act>`, no thought and no tool (DeepThinkVLA's
    mask-CoT)."""
    think_every: int = 1
    """Decisions: the policy thinks (and looks) at every n-th of an episode. Those between reuse its last thought, which
    stands in the turn as context, followed by an injected `<act>`."""
    temperature: NonNegativeFloat = 1.0
    """Of sampling; 0 is greedy. SimpleVLA-RL trains at 1.6, the paper's inference is greedy."""
    action_temperature: NonNegativeFloat | None = None
    """Of action tokens, where the checkpoint decodes them in parallel; None: as `temperature`."""
    tools: dict[str, str] = field(default_factory=lambda: {"zoom_in": "rlvla.policies.thinker.tools:zoom_in"})
    """Tool name in the markup -> `"module:function"`."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the keys."""
        if self.think_every < 1:
            raise ValueError(f"episode.think_every is {self.think_every}: need at least 1")
        if self.mode == "act" and self.think_every > 1:
            raise ValueError(
                f"episode.think_every is {self.think_every}, and episode.mode act has no thought to reuse: leave "
                "think_every out, or choose mode zoom or think"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0 and not self.action_temperature


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What each SamplerActor draws with. All but `backend`, `dtype` and `threads` is vLLM's alone."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    backend: Literal["vllm", "transformers"] = "vllm"
    """`transformers`: one request after another, each from its first token on, many times slower; for what vLLM does
    not serve, such as checkpoints with `prefix_attention: bidirectional`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations; bfloat16 on GPUs."""
    max_num_seqs: PositiveInt = 64
    """Sequences that the engine batches at most."""
    kv_cache_mb: NonNegativeInt = 256
    """KV cache, MiB; 0 leaves it to `gpu_memory_utilization` (GPU)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of GPU memory when `kv_cache_mb` is 0; 0.45 leaves room for a colocated learner."""
    block_size: PositiveInt = 32
    """Tokens of a KV block; prefix caching works in whole blocks, and vLLM's CPU attention in multiples of 32."""
    enforce_eager: bool = True
    """False: compile and capture CUDA graphs (GPU)."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine spans."""
    threads: PositiveInt = 1
    """OpenMP threads of a sampler on the CPU: beside simulators one is faster than two on two cores."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How many processes of each kind, and what each may use."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    address: Loose[str] = "local"
    """Ray: `local` starts one on loopback; `auto` or `host:port` joins a running cluster."""
    num_samplers: MayChange[PositiveInt] = 1
    """Engines of `sampler.backend`."""
    num_rollout_actors: MayChange[PositiveInt] = 1
    """Processes that drive envs."""
    envs_per_actor: MayChange[PositiveInt] = 32
    """Envs, hence concurrent episodes, in each rollout actor."""
    envs_per_process: Loose[PositiveInt] = 1
    """Envs in each process that a rollout actor starts for them. Together they take less memory (an env of the tabletop
    33 MB alone, 17 MB among 8); but one that hangs costs the others' episodes too, which are then played again."""
    max_restarts: Loose[NonNegativeInt] = 3
    """Times that each sampler and rollout actor is started anew in a run after it died, failed or hung; then the run
    ends."""
    actor_deadline_s: Loose[PositiveFloat] = 900.0
    """Seconds in which a sampler or rollout actor starts or answers anybody at all, and a sampler takes new weights;
    else it is ended and started anew. Ours: loading 7B weights and capturing graphs takes minutes."""
    learner_deadline_s: Loose[PositiveFloat] = 3600.0
    """Seconds in which all learner ranks start, learn from a step, gather their weights or write a state; else the run
    ends. Ours: a step on 512 trajectories with a 7B policy takes up to about half an hour on 4 GPUs."""
    num_learners: MovesNoScore[PositiveInt] = 1
    """DeepSpeed ranks."""
    sampler_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a sampler reserves."""
    rollout_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a rollout actor reserves."""
    learner_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a learner rank reserves."""
    sampler_gpus: Loose[NonNegativeFloat] = 0.0
    """Ray GPUs that a sampler reserves, all on one node: `sampler.tensor_parallel_size`, or a share of one."""
    learner_gpus: Loose[NonNegativeFloat] = 0.0
    """Ray GPUs that a learner rank reserves: 1, or a share, which colocates it: then each rank has a GPU together with
    one sampler, whose share is the rest (0.5 and 0.5). It takes as many samplers as learners."""
    threads: Loose[PositiveInt] = 2
    """OpenMP threads of a learner rank on the CPU."""
    placement: Loose[Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]] = "PACK"
    """Ray placement-group strategy over nodes: PACK colocates, SPREAD keeps apart."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        for key in ("sampler_gpus", "learner_gpus"):
            amount = getattr(self, key)
            if amount > 1 and amount % 1:
                raise ValueError(f"cluster.{key} is {amount}: Ray gives shares of one GPU, or whole ones")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """peft LoRA on the language model, and the rows of the markup's tokens; float32, never merged.

    The reference is then the same weights under the adapter that the run started with.
    """

    __pydantic_config__: ClassVar[Any] = _FORBID

    rank: PositiveInt = 32
    """Rank of the update (openvla-oft: 32)."""
    alpha: PositiveFloat = 64.0
    """Scale numerator: the update is multiplied by alpha / rank."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers of the language model that get an adapter."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """GRPO's objective; formulas in `rlvla.learner.loss`."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Ratio clipped from below at 1 - clip_low (PPO, DAPO)."""
    clip_high: NonNegativeFloat = 0.28
    """Ratio clipped from above at 1 + clip_high (DAPO clip-higher; SimpleVLA-RL: 0.28)."""
    kl_coef: NonNegativeFloat = 0.01
    """Weight of KL(policy || reference)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators, http://joschu.net/blog/kl-approx.html. As a loss `k1` and `k2` have the gradient of
    KL(policy || reference), `k3`, GRPO's, that of KL(reference || policy); see `rlvla.learner.loss.kl`."""
    average: Literal["token", "trajectory", "constant"] = "token"
    """`token`: every sampled token weighs alike (DAPO); `trajectory`: mean in each trajectory, then over them (GRPO);
    `constant`: sum over tokens / (trajectories * `constant_length`) (Dr.GRPO)."""
    constant_length: PositiveInt = 512
    """Tokens; divisor of `average: constant`."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    importance_cap: NonNegativeFloat = 2.0
    """Cap of exp(old - sampler logprob), the truncated importance weight between sampler and learner; 0: off."""


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Group-relative advantages; formulas in `rlvla.learner.advantage`."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    normalize_std: bool = True
    """Divide by the group's standard deviation (GRPO); False is Dr.GRPO."""
    eps: PositiveFloat = 1e-6
    """Added to the standard deviation."""
    combine: Literal["sum_first", "normalize_first"] = "sum_first"
    """Normalise the weighted sum of the reward terms, or each term by itself and then sum."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Optimisation."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    lr: MayChange[PositiveFloat] = 1e-6
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up, until the last step of the run."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    """AdamW."""
    max_grad_norm: MayChange[PositiveFloat] = 1.0
    """Global gradient norm is clipped here."""
    max_skipped_steps: MayChange[NonNegativeInt] = 3
    """Steps in a row that may skip an update, as reward, loss or gradient is not finite; one more stops the run. 0: the
    first one does."""
    zero_stage: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO; bfloat16 with 0 runs as 2, since stage 0 keeps no float32 masters of it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; bfloat16 keeps float32 masters in DeepSpeed."""
    micro_batch_rows: MayChange[PositiveInt] = 16
    """Rows in one forward and backward."""
    gradient_checkpointing: MayChange[bool] = False
    """Trade compute for activation memory."""
    lora: LoraConfig | None = None
    """None trains all weights; of a checkpoint with an adapter, which training goes on with, the same as before."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        if self.max_skipped_steps < 0:
            raise ValueError(f"learner.max_skipped_steps is {self.max_skipped_steps}: need at least 0")


@dataclass(frozen=True, kw_only=True)
class RewardTermConfig:
    """One term of the reward."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    fn: str
    """`success`, `format`, `"module:function"` or `"path/to/file.py:function"`."""
    weight: float = 1.0
    """In the sum."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    makes_signal: bool | None = None
    """Whether a group in which it alone varies teaches anything. None: what the function's own attribute
    `makes_signal` says, and true where it has none; `format` says false. Where no term with a weight makes signal, all
    do. SimpleVLA-RL filters groups by accuracy alone (arXiv 2509.09674)."""
    name: str = ""
    """Under which the unweighted term is kept; empty: the function's name."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Sinks beside `metrics.jsonl`, which is always written."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    tensorboard: bool = False
    """Write event files to `tensorboard/` in the output folder."""
    wandb_project: str = ""
    """Weights & Biases project; empty: off."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What `--dry-run` plans for, where checkpoint and GPUs are not at hand yet; a run takes them as they are."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    architecture: Path | None = None
    """JSON of a model and its policy (recipes/configs/models), for a `model` that is not on this machine."""
    gpu: Literal["cpu", "rtx-4090", "a100-40gb", "l40s", "a100-80gb", "h100-80gb", "h200"] = "cpu"
    """What learner ranks and samplers run on; memory and speed as in `rlvla.plan.turn.DEVICES`."""
    num_processes: PositiveInt = 1
    """Learner ranks of `recipes/sft.py`, which `accelerate launch --num_processes` decides."""


@dataclass(frozen=True, kw_only=True)
class TinyModelConfig:
    """A small VLM with random weights, built instead of loading a checkpoint."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    architecture: Literal["idefics3", "qwen2_5_vl"] = "idefics3"
    """Hugging Face architecture."""
    hidden_size: PositiveInt = 128
    """Width of vision tower and language model."""
    num_layers: PositiveInt = 4
    """Of the language model."""
    vision_layers: PositiveInt = 2
    """Of the vision tower."""
    image_size: PositiveInt = 64
    """Policy view, px."""
    patch_size: PositiveInt = 8
    """Of the vision tower, px."""
    initializer_range: PositiveFloat = 0.06
    """Standard deviation of the initial weights; 0.02 learned 10x slower at this size."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How recorded episodes are read; docs/demonstrations.md says what each kind of file needs."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    cameras: tuple[str, ...] = ()
    """Names, in the policy's order; empty: `agentview` (HDF5), the first one listed (LeRobot)."""
    rotate: bool | None = None
    """Turn frames by 180 degrees, as OpenVLA does with what LIBERO renders; None: HDF5 yes, LeRobot no."""
    frames_follow_actions: bool | None = None
    """Frame t was recorded behind action t, as LIBERO's official ones; None: HDF5 tells by its states, LeRobot no."""
    actions: ActionKind | None = None
    """What all action components but the last are: `delta`, by which the robot moves (LIBERO, its datasets at openpi
    and OpenVLA), or `absolute`, where it goes to (ALOHA, RoboTwin: joints, rad). Behind the end of an episode a chunk
    holds still by it: zeros, or the last action again. None: `delta`, and an error where the numbers look absolute."""
    gripper: Literal["robosuite", "openvla", "droid", "unchanged"] | None = None
    """Convention of the last action component: `robosuite` -1 open, 1 close; `openvla` 1 open, 0 close; `droid` 0 open,
    1 close. It becomes robosuite's. `unchanged`: the env takes it as it is. None: robosuite's, and an error where the
    values leave it open."""
    drop_noops: bool = True
    """Leave out frames whose delta moves nothing, by OpenVLA's rule. Of absolute actions none leaves: one that comes
    again may still be under way."""
    center_crop: bool = True
    """Show the middle 0.9 of the frame's area, as OpenVLA does and as our LIBERO env does by default."""
    view_size: int = 0
    """Side of the policy view, pixels; 0: as recorded."""

    @property
    def action_kind(self) -> ActionKind:
        """What actions are taken for."""
        return self.actions or "delta"

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        if self.view_size < 0:
            raise ValueError(f"read.view_size is {self.view_size}: need at least 0")


@dataclass(frozen=True, kw_only=True)
class KeyFrameConfig:
    """Which decisions are key frames, where the policy learns to look closer: those in whose chunk it happens."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    gripper: Literal["command", "proprio"] = "command"
    """Where the gripper's state is read: in the actions, or in what the robot reports."""
    gripper_dim: int = -1
    """Of the actions or of the proprio."""
    closed_sign: Literal[1, -1] = 1
    """1: large values are closed, as in robosuite's commands; -1: small ones, as a finger's opening."""
    open_below: float = -0.5
    """The gripper counts as open once `closed_sign` times the value has come down to this."""
    closed_above: float = 0.5
    """And as closed once it has come up to this; between the two it stays what it was (hysteresis)."""
    min_gap: int = 1
    """Env steps, whatever `stride`, between two changes of the gripper, or of moving and standing still, at least; the
    later of two that are closer is taken for chatter."""
    still_speed: float = 0.0
    """Also where the arm slows down to this, units of `still_dims` per second (Chain-of-Action's heuristic); 0: not."""
    still_dims: tuple[int, ...] = (0, 1, 2)
    """Of the proprio, whose speed that is."""
    first: bool = False
    """Also the first decision."""
    last: bool = False
    """Also the last one."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the keys."""
        if self.open_below >= self.closed_above:
            raise ValueError(
                f"key_frames.open_below {self.open_below} must be below key_frames.closed_above {self.closed_above}"
            )
        if self.min_gap < 1 or self.still_speed < 0:
            raise ValueError(
                f"key_frames.min_gap is {self.min_gap}, need at least 1; "
                f"key_frames.still_speed is {self.still_speed}, need at least 0"
            )


CheckName = Literal["markup", "box", "length", "gripper", "subject", "progress", "repetition", "grounding"]


def _without_gone(names: Any) -> Any:
    """Raises ValueError where `checks.names` holds a check of an earlier version."""
    if isinstance(names, list | tuple) and "language" in names:
        raise ValueError("checks.names: there is no check language any more: leave it out; openai.judge reads the text")
    return names


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What an annotation must hold; an answer that fails is asked for again, with the reason."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    names: Annotated[tuple[CheckName, ...], BeforeValidator(_without_gone)] = (
        "markup", "box", "length", "gripper", "subject", "progress", "repetition", "grounding",
    )  # fmt: skip
    """Checks to run; `rlvla/annotation/checks.py` says what each one wants."""
    looks: tuple[NonNegativeInt, NonNegativeInt] = (1, 1)
    """Fewest and most looks at a key frame; elsewhere there is none."""
    max_box_area: _Share = 0.5
    """Share of the frame that a box may cover."""
    min_box_side: Annotated[int, Field(ge=0, le=1000)] = 30
    """Thousandths of the frame; the tool itself refuses less than 10."""
    num_words: tuple[NonNegativeInt, NonNegativeInt] = (3, 80)
    """Fewest and most words of a thought."""
    max_repetition: PositiveInt = 4
    """Decisions in a row that may think nearly the same."""
    similarity: _Share = 0.95
    """From which on two thoughts are nearly the same, 0 to 1 (share of words in common)."""
    progress_slack: NonNegativeFloat = 0.0
    """By how much progress may fall from one decision to the next."""
    containment: _Share = 0.5
    """Least share of the named object's box that the look's box covers, where privileged state tells."""
    spread: PositiveFloat = 40.0
    """Most that the look's box may cover, in areas of the named object's box."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        for key in ("looks", "num_words"):
            fewest, most = getattr(self, key)
            if fewest > most:
                raise ValueError(f"checks.{key} is {fewest} to {most}: the first must not be above the second")


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """The server of a vision-language model that speaks OpenAI's chat completions, such as `vllm serve`."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    base_url: str = "http://127.0.0.1:8000/v1"
    """Its address."""
    model: str = ""
    """As the server names it; empty: the only one that it lists."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; a server on loopback needs none."""
    concurrency: int = 32
    """Requests in flight."""
    timeout_s: float = 120.0
    """Of one request."""
    max_retries: int = 8
    """Of a request that met 429, 5xx, a time-out or a broken connection, with exponential backoff."""
    temperature: NonNegativeFloat = 0.7
    """Qwen3-VL-Instruct's own recommendation (generation_config.json)."""
    max_tokens: int = 512
    """Of one answer."""
    judge: bool = False
    """Ask a second question about each answer that passed the checks: whether its sentences are true, yes or no, with a
    reason. A no counts as a failed check."""
    judge_base_url: str = ""
    """Address of the server that judges; empty: `base_url`."""
    judge_model: str = ""
    """Which judges; empty: `model`, or the only one that the server at `judge_base_url` lists."""
    judge_api_key_env: str = ""
    """Environment variable with the key for `judge_base_url`, which is not sent that of `base_url`."""
    usd_per_million_prompt_tokens: NonNegativeFloat = 0.0
    """For the cost in the data card."""
    usd_per_million_completion_tokens: NonNegativeFloat = 0.0
    """Likewise."""

    @property
    def has_own_judge(self) -> bool:
        """Whether another server or another model judges than answers."""
        return bool(self.judge_base_url or self.judge_model)

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        if not self.judge and (self.judge_base_url or self.judge_model or self.judge_api_key_env):
            raise ValueError("openai.judge is false, and another key of the judge is set: set openai.judge: true")
        if self.judge_api_key_env and not self.judge_base_url:
            raise ValueError("openai.judge_api_key_env is set without openai.judge_base_url: set api_key_env instead")
        if self.concurrency < 1 or self.max_tokens < 1 or self.timeout_s <= 0 or self.max_retries < 0:
            raise ValueError("openai.concurrency, max_tokens and timeout_s must be positive, max_retries at least 0")


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """`recipes/annotate.py`: expert demonstrations -> a LeRobot v3 data set with thought and zoom."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    output: Path = Path("outputs/demos")
    """Folder of the data set; must not exist. Until it is whole, work lies in `<output>.partial`, and is resumed."""
    source: Path | None = None
    """Recorded episodes instead of an expert: LIBERO's HDF5 (a file or a folder), or a LeRobot v2 or v3 folder."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """How to read `source`."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Simulator that the expert acts in; a `source` needs none."""
    num_episodes: PositiveInt | None = None
    """Over all tasks, from train initial states; None: 2000 of an expert, all of a `source`."""
    chunk_length: PositiveInt = 5
    """K, env steps that a decision plans."""
    stride: int = 0
    """Env steps from one decision to the next; 0: the chunk length. OpenVLA-OFT trains on every frame: 1."""
    expert: str = "rlvla_envs.tabletop.expert:play"
    """`"module:function"`: (env, task_id, init_state_id, *, chunk_length, stride, rng, **expert_kwargs) -> a list of
    decisions, or None where it failed."""
    expert_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the expert."""
    annotator: str = ""
    """"openai"; or `"module:function"`, as `rlvla_envs.tabletop.annotate:annotate`: (decisions, index, *,
    timeline, rng, **annotator_kwargs) -> Annotation; empty: act without a thought."""
    annotator_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to a plugin."""
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    """Server of the annotator "openai", and of the judge."""
    key_frames: KeyFrameConfig = field(default_factory=KeyFrameConfig)
    """Where to look closer."""
    checks: CheckConfig = field(default_factory=CheckConfig)
    """What an annotation must hold."""
    max_attempts: int = 3
    """Answers that are asked for at one decision before it is dropped."""
    max_refused_first: NonNegativeInt = 100
    """Answers at the start of a run that may all fail the checks; then it ends and says why, before more are paid for.
    0: it goes on. Our own choice: of an annotator that passes one time in 20, 1 run in 170 would be ended wrongly."""
    num_samples: NonNegativeInt = 24
    """Random decisions on the contact sheet."""
    seed: NonNegativeInt = 0
    """Of the order of states and of the annotator's choices."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the keys."""
        if self.stride < 0 or self.stride > self.chunk_length or self.max_attempts < 1:
            raise ValueError(
                f"stride is {self.stride}, need 0 to chunk_length ({self.chunk_length}); "
                f"max_attempts is {self.max_attempts}, need at least 1"
            )
        if self.openai.judge and not self.annotator:
            raise ValueError("openai.judge is true, and annotator is empty: there is nothing to judge")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """`recipes/sft.py`: the cold start."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    dataset: Path = Path("outputs/demos")
    """LeRobot v3 folder with annotation columns."""
    output: MayChange[Path] = Path("outputs/sft")
    """Run folder; the policy lies in `checkpoint/`."""
    model: str = ""
    """Hugging Face VLM to start from (path or hub id); empty: build `tiny`."""
    adapter: Path | None = None
    """Folder of somebody's LoRA adapter (peft), which is merged into `model` first, and rounded to `learner.dtype`."""
    tiny: TinyModelConfig = field(default_factory=TinyModelConfig)
    """Used when `model` is empty."""
    num_bins: Annotated[int, Field(ge=2)] | None = None
    """Bins per action dimension; of an OpenVLA checkpoint as many as it has action tokens, 256. None: what `model` has,
    64 where it has none. A policy that gets another number has its action tokens fitted anew to `dataset`."""
    gripper_dim: int | None = -1
    """Action dimension that is open or closed and nothing between; None: there is none."""
    statistics_key: str = ""
    """What action tokens mean. Empty: a policy that is trained further keeps what it has; of OpenVLA it is the only
    statistics that the checkpoint has; else `demonstrations`: those of `dataset`, as OpenVLA-OFT's fine-tuning has it.
    Any other: a data set's that an OpenVLA checkpoint has."""
    statistics_kind: Literal["bounds_q99", "bounds"] | None = None
    """OpenVLA: the bins reach from the 1st to the 99th percentile (LIBERO), or from the least to the largest value
    (`bounds`; OpenVLA-OFT on ALOHA and RoboTwin). None: `bounds_q99`, or what a policy that is trained further has."""
    action_decoding: ActionDecoding | None = None
    """`parallel`: all action tokens of a chunk in one forward, with bidirectional attention among them (OpenVLA-OFT,
    arXiv 2502.19645); `parallel_causal`: likewise in one forward, but each sees only the slots before it, which every
    attention backend of vLLM can; `autoregressive`: one after another, like text. Kept with the checkpoint. None: what
    the policy `model` has, `autoregressive` where it is none yet."""
    prefix_attention: Literal["causal", "bidirectional"] | None = None
    """`bidirectional`: the tokens of a turn's prompt, images and instruction, see each other (DeepThinkVLA); all behind
    them stays causal. Goes with both values of `action_decoding`. Kept with the checkpoint, which then takes
    `sampler.backend: transformers`. None: what the policy `model` has, `causal` where it is none yet."""
    num_steps: MayChange[NonNegativeInt] = 500
    """Optimizer steps; 0 writes the policy untrained, for GRPO without a cold start."""
    batch_size: PositiveInt = 64
    """Turns per optimizer step, over all processes."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of episodes kept for validation loss."""
    validate_every: MayChange[PositiveInt] = 100
    """Optimizer steps."""
    save_every: MayChange[NonNegativeInt] = 0
    """Optimizer steps between resumable states; 0: none, so that a run that dies starts over."""
    keep_states: MayChange[PositiveInt] = 3
    """The newest of them that stay on the disk; one more than can be damaged at once."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lr=2e-5))
    """Optimisation."""
    num_trials: MayChange[NonNegativeInt] = 0
    """Held-out initial states per task that the result is evaluated on, as `recipes/evaluate.py` does it; 0: none. The
    four keys below are read for this evaluation only."""
    env: MayChange[EnvConfig] = field(default_factory=EnvConfig)
    """Simulator of that evaluation."""
    episode: MayChange[EpisodeConfig] = field(default_factory=lambda: EpisodeConfig(temperature=0.0))
    """Its turn limits; greedy by default."""
    sampler: MayChange[SamplerConfig] = field(default_factory=SamplerConfig)
    """Its sampler. On a GPU it starts beside the trainer, which still holds its memory."""
    cluster: MayChange[ClusterConfig] = field(default_factory=ClusterConfig)
    """Its processes."""
    log: MayChange[LogConfig] = field(default_factory=LogConfig)
    """Sinks."""
    seed: NonNegativeInt = 0
    """Of initial weights and data order."""
    plan: MayChange[PlanConfig] = field(default_factory=PlanConfig)
    """What `dry_run` assumes."""
    dry_run: MayChange[bool] = False
    """Build everything but weights, print memory, tokens and time of a step, and end."""

    @property
    def evaluation(self) -> EvaluateConfig:
        """Of the result, with `num_trials` above 0."""
        return EvaluateConfig(
            model=self.output / "checkpoint",
            output=self.output / "evaluate",
            env=self.env,
            episode=self.episode,
            sampler=self.sampler,
            cluster=self.cluster,
            num_trials=self.num_trials,
        )

    def __post_init__(self) -> None:
        """Raises ValueError naming the two keys that contradict each other."""
        if self.adapter is not None and not self.model:
            raise ValueError(f"adapter is {self.adapter}, and model is empty: name the model that it was trained on")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """`recipes/grpo.py`."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    model: Path = Path("outputs/sft/checkpoint")
    """SFT checkpoint: the starting point and the frozen reference."""
    output: MayChange[Path] = Path("outputs/grpo")
    """Run folder; the policy lies in `checkpoint/`."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Simulator."""
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Turn limits and sampling."""
    sampler: MayChange[SamplerConfig] = field(default_factory=SamplerConfig)
    """vLLM, or transformers."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray."""
    reward: MayChange[tuple[RewardTermConfig, ...]] = (
        RewardTermConfig(fn="success", weight=1.0),
        RewardTermConfig(fn="format", weight=0.1),
    )
    """R = sum of weight * term."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Group-relative."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Objective."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """DeepSpeed."""
    log: MayChange[LogConfig] = field(default_factory=LogConfig)
    """Sinks."""
    num_steps: MayChange[PositiveInt] = 100
    """Rounds of rollout and learning."""
    groups_per_step: PositiveInt = 8
    """Groups that a step learns from; with `max_waves` above 1 at most so many, and only ones with signal."""
    group_size: int = 8
    """G; SimpleVLA-RL: 8."""
    max_waves: PositiveInt = 1
    """Rollout waves per step: above 1, groups without signal are dropped and refilled (DAPO dynamic sampling), and
    surplus groups are kept for the next step."""
    max_futile_steps: MayChange[NonNegativeInt] = 10
    """Steps in a row that may hold no group with signal, unless every trajectory was a success; then the run stops and
    says what was seen. A first step that has none and no executable action either stops it at once. 0: it never stops.
    Our own choice: at the defaults 640 trajectories, which a policy that succeeds in 1 of 200 fills with failures in 1
    run of 25; a policy that starts lower learns nothing to speak of."""
    max_refills: MayChange[NonNegativeInt] = 2
    """Times that the trajectories of a step which ended as ENV_ERROR are replaced by further members of their groups;
    what is still missing then is left out."""
    minibatch_trajectories: PositiveInt = 64
    """Trajectories per optimizer step at most: a step's are dealt into as few parts of nearly equal size as that takes,
    none of a single one."""
    num_epochs: PositiveInt = 1
    """Passes over a step's trajectories, each dealt anew."""
    mask_context_full: bool = True
    """Leave trajectories that outgrew the turn limit out of the loss (masked, not punished)."""
    save_every: MayChange[NonNegativeInt] = 0
    """Steps between resumable checkpoints; 0: none, so that a run that dies starts over."""
    keep_states: MayChange[PositiveInt] = 3
    """The newest of them that stay on the disk; one more than can be damaged at once."""
    save_trajectories: MayChange[NonNegativeInt] = 4
    """Trajectories of the last step kept for the report."""
    seed: NonNegativeInt = 0
    """Of task order and sampling."""
    plan: MayChange[PlanConfig] = field(default_factory=PlanConfig)
    """What `dry_run` assumes."""
    dry_run: MayChange[bool] = False
    """Build everything but weights, print memory, tokens and time of a step, and end."""

    @property
    def minibatches_per_step(self) -> int:
        """Optimizer steps in one pass over a full step's trajectories."""
        return num_minibatches(self.groups_per_step * self.group_size, self.minibatch_trajectories)

    def __post_init__(self) -> None:
        """Raises ValueError naming the two keys that contradict each other."""
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}: group-relative advantages need at least 2")
        if self.episode.temperature <= 0:
            raise ValueError("episode.temperature must be above 0: greedy trajectories of a group are all the same")
        if self.episode.action_temperature is not None and self.episode.action_temperature <= 0:
            raise ValueError("episode.action_temperature must be above 0: greedy actions have no gradient to learn by")
        if not self.reward:
            raise ValueError("reward is empty: name at least one term, for example {fn: success}")
        if self.learner.zero_stage == 3 and self.learner.lora is not None:
            raise ValueError("learner.zero_stage 3 with learner.lora is not supported: use zero_stage 2")
        episode = self.episode
        if episode.max_think_tokens >= episode.max_turn_tokens:
            raise ValueError(
                f"episode.max_think_tokens is {episode.max_think_tokens}, episode.max_turn_tokens "
                f"{episode.max_turn_tokens}: a turn has to hold more than one thought"
            )
        if not any(term.weight for term in self.reward):
            raise ValueError("reward: every weight is 0, so that there is nothing to learn")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`recipes/evaluate.py`."""

    __pydantic_config__: ClassVar[Any] = _FORBID

    model: Path = Path("outputs/grpo/checkpoint")
    """Checkpoint to evaluate."""
    output: MovesNoScore[Path] = Path("outputs/evaluate")
    """Folder of `summary.json` and saved trajectories."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Simulator."""
    episode: EpisodeConfig = field(default_factory=lambda: EpisodeConfig(temperature=0.0))
    """Greedy by default; `mode` and `think_every` are the ablations."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """vLLM, or transformers."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray."""
    num_trials: PositiveInt = 200
    """Initial states per task, one trial each."""
    split: Literal["evaluate", "official"] = "evaluate"
    """`evaluate`: held out from training; `official`: a benchmark's own states (LIBERO: 50 a task)."""
    allow_trained_states: bool = False
    """Evaluate on official states although the policy was trained on some of them; the result says so."""
    save_trajectories: MovesNoScore[NonNegativeInt] = 8
    """Kept for the report, half of them failures where there are."""
    seed: NonNegativeInt = 0
    """Of sampling when the temperature is above 0."""
    plan: MovesNoScore[PlanConfig] = field(default_factory=PlanConfig)
    """What `dry_run` assumes."""
    dry_run: MovesNoScore[bool] = False
    """Build everything but weights, print memory, tokens and time of a step, and end."""


def num_minibatches(num_trajectories: int, size: int) -> int:
    """As few as hold at most `size` trajectories each, but none of one, unless `size` is 1 or there is only one."""
    return max(1, min(-(-num_trajectories // size), num_trajectories // min(size, 2)))


def load(cls: type[C], argv: Sequence[str] | None = None) -> C:
    """Read a config: defaults < `--config` YAML < dotted flags.

    Args:
        cls: one of the config dataclasses above.
        argv: command line without the program's name; None: `sys.argv[1:]`.

    Raises:
        SystemExit: the YAML or a flag is wrong; the message names the file, the key and the value.
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config", type=Path, action="append", default=[])
    known, rest = before.parse_known_args(argv)
    if len(known.config) > 1:
        raise SystemExit(f"--config is given {len(known.config)} times: name one file, and the rest as flags")
    try:
        given: dict[str, Any] = {"default": from_yaml(cls, known.config[0])} if known.config else {}
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    config = tyro.cli(cls, args=rest, **given)
    try:
        return TypeAdapter(cls).validate_python(config)
    except ValidationError as error:
        raise SystemExit(explain(error, cls, "command line")) from None


def from_yaml(cls: type[C], path: Path) -> C:
    """Read and check one YAML file; raises ConfigError, which names the file, the key and the value."""
    try:
        return TypeAdapter(cls).validate_python(without_gone(read_yaml(path)))
    except ValidationError as error:
        raise ConfigError(explain(error, cls, str(path))) from None
