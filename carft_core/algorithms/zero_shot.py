"""Zero-shot: the model as it was pre-trained, with which every tuned model is compared."""

from __future__ import annotations

from typing import ClassVar

from carft_sweep.carft_core.algorithms.base import Algorithm


class ZeroShot(Algorithm):
    """Classification by the text features of the class prompts; nothing is trained.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision" (arXiv 2103.00020), section 3.1.
    """

    name: ClassVar[str] = "zero_shot"
    summary: ClassVar[str] = "The pre-trained model with its zero-shot head"
    trains: ClassVar[bool] = False
