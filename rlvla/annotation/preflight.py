"""What annotating needs beside its config, looked at before a simulator or a server is asked."""

from __future__ import annotations

from rlvla.annotation.annotators import SERVER, load_annotator
from rlvla.annotation.sources import load_expert
from rlvla.config import AnnotateConfig
from rlvla.run.preflight import check_env


def check_annotate(cfg: AnnotateConfig) -> None:
    """Source or simulator, expert and annotator are there.

    Raises:
        ValueError: the message names the key.
        FileNotFoundError: `source` does not exist.
    """
    if cfg.annotator and cfg.annotator != SERVER:
        load_annotator(cfg.annotator, cfg.annotator_kwargs)
    if cfg.source is None:
        load_expert(cfg)
        check_env(cfg)
    elif not cfg.source.exists():
        raise FileNotFoundError(f"source: there is no {cfg.source}")
    elif cfg.output.resolve().is_relative_to(cfg.source.resolve()):
        raise ValueError(
            f"output: {cfg.output} lies in source {cfg.source}, which has to stay as it is: name a folder beside it"
        )
