"""Prompts for the engine: the same as vLLM's own, with images prepared once."""

from types import SimpleNamespace

import numpy as np
import pytest

from rlvla.protocols import SampleRequest
from rlvla.samplers.vllm.requests import PromptRenderer

PLACEHOLDER = 9


class Renderer:
    """Expands a placeholder to three tokens, as a model with three patches would."""

    def __init__(self):
        self.prompts = []

    def render_cmpl(self, prompts, *, skip_mm_cache):
        assert skip_mm_cache  # pixels must be in what is kept
        (prompt,) = prompts
        self.prompts.append(prompt)
        ids = [i for id_ in prompt["prompt_token_ids"] for i in ([9, 9, 9] if id_ == PLACEHOLDER else [id_])]
        names = prompt["multi_modal_uuids"]["image"]
        pixels = [np.asarray(image) for image in prompt["multi_modal_data"]["image"]]
        return [{"type": "multimodal", "prompt_token_ids": ids, "mm_hashes": names, "mm_kwargs": pixels}]


@pytest.fixture
def renderer():
    return Renderer()


@pytest.fixture
def prompts(renderer):
    return PromptRenderer(SimpleNamespace(renderer=renderer), PLACEHOLDER, capacity=2, slot_ids=(7, 8))


def request(ids, images, num_actions=0):
    return SampleRequest(
        prompt_ids=ids, images=images, stop_ids=(), max_tokens=1, temperature=1.0, seed=0, num_actions=num_actions
    )


def image(value, shape=(2, 4, 3)):
    return np.full(shape, value, np.uint8)


def test_what_follows_the_last_image_is_appended_and_images_are_prepared_once(prompts, renderer):
    first = prompts.render(request((1, 9, 2), (image(0),)))
    longer = prompts.render(request((1, 9, 2, 3, 4), (image(0).copy(),), num_actions=2))
    assert first["prompt_token_ids"] == [1, 9, 9, 9, 2]
    assert longer["prompt_token_ids"] == [1, 9, 9, 9, 2, 3, 4, 7, 8]
    assert first["mm_kwargs"] is longer["mm_kwargs"]
    assert [prompt["prompt_token_ids"] for prompt in renderer.prompts] == [[1, 9]]
    assert longer["arrival_time"] >= first["arrival_time"]


@pytest.mark.parametrize(
    "other",
    [
        request((1, 9, 2), (image(1),)),
        request((1, 9, 2), (image(0, (4, 2, 3)),)),
        request((5, 9, 2), (image(0),)),
        request((1, 9, 2, 9), (image(0), image(0))),
    ],
    ids=["pixels", "shape", "words", "one more"],
)
def test_another_beginning_is_prepared_anew(prompts, renderer, other):
    prompts.render(request((1, 9, 2), (image(0),)))
    rendered = prompts.render(other)
    assert len(renderer.prompts) == 2
    assert len(rendered["mm_kwargs"]) == len(other.images)
    assert all(np.array_equal(a, b) for a, b in zip(rendered["mm_kwargs"], other.images, strict=True))


def test_an_image_has_one_name_wherever_it_stands(prompts, renderer):
    prompts.render(request((1, 9), (image(3),)))
    rendered = prompts.render(request((1, 9, 2, 9), (image(4), image(3))))
    assert rendered["mm_hashes"][1] == renderer.prompts[0]["multi_modal_uuids"]["image"][0] != rendered["mm_hashes"][0]


def test_the_oldest_is_forgotten(prompts, renderer):
    for value in (0, 1, 0, 2, 0, 1):  # 0 is asked for again and again
        prompts.render(request((9,), (image(value),)))
    seen = [int(prompt["multi_modal_data"]["image"][0].getpixel((0, 0))[0]) for prompt in renderer.prompts]
    assert seen == [0, 1, 2, 1]


def test_text_alone_needs_no_renderer(prompts, renderer):
    rendered = prompts.render(request((1, 2), (), num_actions=2))
    assert (rendered["type"], rendered["prompt_token_ids"], renderer.prompts) == ("token", [1, 2, 7, 8], [])
