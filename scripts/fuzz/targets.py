"""All targets, in `TARGETS`."""

import checkpoints as checkpoints
import files as files
import texts as texts
from target import TARGETS as TARGETS
from target import WORDS as WORDS
