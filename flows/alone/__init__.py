"""One part of the chain alone, on a run's model or any other: sampling, scores of texts, an evaluation."""

from flows.alone.chosen import Chosen, named_model, policy_of
from flows.alone.evaluate import Evaluation, Measured, evaluated
from flows.alone.sample import Asked, asked_of, prompts_in, sampled, written_prompts
from flows.alone.score import Judged, scored_by_model, scored_by_run, texts_in, written_texts

__all__ = [
    "Asked",
    "Chosen",
    "Evaluation",
    "Judged",
    "Measured",
    "asked_of",
    "evaluated",
    "named_model",
    "policy_of",
    "prompts_in",
    "sampled",
    "scored_by_model",
    "scored_by_run",
    "texts_in",
    "written_prompts",
    "written_texts",
]
