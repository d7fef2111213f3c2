"""What listens to a training: your own callbacks, and loggers."""

from __future__ import annotations

from .base import Callback, check_callbacks
from .loggers import TensorBoard, WandB

__all__ = ["Callback", "TensorBoard", "WandB", "check_callbacks"]
