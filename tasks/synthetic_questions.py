"""Questions on passages in the synthetic languages, generated from a seed.

`synthetic_questions_<language>`, mixture `synthetic_questions` of the core languages (see
tasks/synthetic.py), each as often as another. Six questions on each passage; see
xl_flax/data/synthetic/passages.py. Those with one number mean the same in every language.
"""

import functools
import json
from typing import Any

import tensorflow as tf

from tasks import text
from tasks.question_files import KEYS, add_question_task
from tasks.synthetic import CORE
from tasks.synthetic_labelled import source
from xl_flax.data.synthetic.language import FAMILY, Language
from xl_flax.data.synthetic.passages import passage

QUESTIONS = 6  # of a passage
SIGNATURE = {key: tf.TensorSpec((), tf.string) for key in KEYS}

_passage = functools.lru_cache(maxsize=4)(passage)  # its questions follow one another


def question(language: Language, split: str, index: int) -> dict[str, Any]:
    """A question, its passage, and the answer as in SQuAD."""
    own = _passage(language, split, index // QUESTIONS)
    asked = own.questions[index % QUESTIONS]
    return {
        "question": asked.sentence.text,
        "context": own.text,
        "id": f"{split}-{index}",
        "answers": json.dumps([{"text": asked.answer, "answer_start": asked.start}]),
    }


for _name in CORE:
    add_question_task(
        f"synthetic_questions_{_name}",
        (_name, _name),
        source(functools.partial(question, FAMILY[_name]), SIGNATURE),
    )
text.add_language_mixture(
    "synthetic_questions", [f"synthetic_questions_{name}" for name in CORE], exponent=0
)
