"""Sizes of the network of the family `chain_of_action`, and how it is taught.

Defaults are for a CPU. In brackets is what the public code of Chain-of-Action (arXiv 2506.09990) trains on RLBench
with; where its paper says otherwise, that is named.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rlvla.config.marks import strict

ChainOrder = Literal["reverse", "forward", "hybrid"]


@strict
class ChainOfActionConfig:
    """A transformer over what is seen, and one that decodes an action chain."""

    encoder: Literal["small", "resnet18"] = "small"
    """Of the pictures: strided convolutions, or torchvision's ResNet-18 with its batch norm frozen, which starts from
    ImageNet where `model` is torchvision's file of it [resnet18, from ImageNet]."""
    conv_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 128)
    """Of `encoder: small`: each convolution halves the picture. Ours: 64 px become 8 x 8 tokens."""
    spatial_softmax: bool = True
    """Also tell the first position of a chain where in the pictures each channel of the encoder is found (Finn et al.,
    arXiv 1509.06113). Ours: on a reach, the key frame's error was 0.02 after 300 steps, else still 0.4; the original's
    encoder knows from ImageNet what a thing is."""
    softmax_scale: PositiveFloat = 1.0
    """Of that softmax's logits. Ours: at random weights they are alike, so that nothing is found anywhere. On the
    tabletop, behind 150 steps, the key frame was 3 cm from its pad with 10, and 7 with 1."""
    token_size: PositiveInt = 1
    """Side of the square of places of the encoder's last map that a token is the mean of. Ours: places tell positions
    the better the finer the map is, while attention to its tokens costs their number squared."""
    hidden_size: PositiveInt = 128
    """Width of the transformers [512]."""
    num_heads: PositiveInt = 4
    """Of each attention [8]."""
    ffn_size: PositiveInt = 512
    """Of each feed-forward layer [3200]."""
    encoder_layers: PositiveInt = 2
    """Over the tokens of pictures, proprio and instruction [4]."""
    decoder_layers: PositiveInt = 3
    """Over the chain, below the last one, which each head of `num_future` has for itself [6]."""
    num_text_tokens: PositiveInt = 4
    """That an instruction becomes. Ours: the original has no words and trains one network a task."""
    num_future: PositiveInt = 2
    """Actions that each position predicts in training, the next one first, which alone acts [2; paper: 5]."""
    order: ChainOrder = "reverse"
    """How a chain is decoded: from the key frame back to the robot, from the robot on, or the key frame first and then
    from the robot on [reverse]. Success in the paper: 0.756, 0.668, 0.600."""
    loss: Literal["l1", "l2"] = "l1"
    """Of actions and latents: absolute or squared difference [l1; paper: l2]."""
    latent_coef: NonNegativeFloat = 1.0
    """Weight of the latents' consistency: the last hidden state should be the embedding of the action that it predicts
    [1; the paper does not say]. 0: off; success in the paper then falls to 0.212 with `episode.chain.feedback:
    latent`."""
    key_coef: PositiveFloat = 1.0
    """Weight of the key frame's action in a chain's loss [1]. Ours: of a chain of 20 it alone has to be found in the
    picture; each of the others lies near the one before."""
    learned_std: bool = False
    """Let the network say the standard deviation of each action that it draws, instead of `episode.chain.std`; only
    GRPO trains it. Ours: the original draws nothing."""
    min_std: PositiveFloat = 0.01
    """Least standard deviation of `learned_std`, in units of the normalised action space; ReinFlow and DPPO bound
    theirs likewise."""
    max_std: PositiveFloat = 0.2
    """Largest one (DPPO's Gaussian policies: 0.2). It starts at the geometric mean of both."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the keys that contradict each other."""
        if self.hidden_size % (4 * self.num_heads):  # sines of rows and columns take quarters of the width
            raise ValueError(
                f"chain_of_action.hidden_size is {self.hidden_size}, num_heads {self.num_heads}: the width must be a "
                "multiple of four times the heads"
            )
        if self.min_std > self.max_std:
            raise ValueError(
                f"chain_of_action.min_std is {self.min_std}, max_std {self.max_std}: the least must not be above the "
                "largest"
            )
