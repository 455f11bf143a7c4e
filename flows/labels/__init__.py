"""People rank responses: queues of tasks, their answers, how far they agree, and the preferences that come of it."""

from flows.labels.agreement import Person, alpha_of, krippendorff_alpha, people_of
from flows.labels.annotations import Annotation, all_answers, annotation_of, answers_of, save, save_all
from flows.labels.assignment import next_tasks, shown_order
from flows.labels.choose import WAYS, By, choose_tasks
from flows.labels.close import borda, close, preferences_of
from flows.labels.quality import quality_of, summary_of
from flows.labels.queue import Queue, find_queue, make_queue, queues
from flows.labels.tasks import LabelTask

__all__ = [
    "WAYS",
    "Annotation",
    "By",
    "LabelTask",
    "Person",
    "Queue",
    "all_answers",
    "alpha_of",
    "annotation_of",
    "answers_of",
    "borda",
    "choose_tasks",
    "close",
    "find_queue",
    "krippendorff_alpha",
    "make_queue",
    "next_tasks",
    "people_of",
    "preferences_of",
    "quality_of",
    "queues",
    "save",
    "save_all",
    "shown_order",
    "summary_of",
]
