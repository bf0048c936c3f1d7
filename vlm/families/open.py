"""Which family a checkpoint belongs to."""

import json
from pathlib import Path
from typing import Literal

from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.weights.hub import resolve_checkpoint
