"""Questions that a span of a text answers: SQuAD, XQuAD, MLQA, and TyDiQA's gold passages.

Files of $XL_FLAX_DATA_DIR, all as SQuAD's (tasks/question_files.py):

- `squad` (Rajpurkar et al. 2016): squad/{train,dev}-v1.1.json, "train" and "validation".
- `xquad_<language>` (Artetxe et al. 2020), of SQuAD's dev set in twelve languages:
  xquad/xquad.<code>.json, "test". Mixtures `xquad`, and `xquad_xtreme` of XTREME's eleven.
- `mlqa_<context>_<question>` (Lewis et al. 2020), in seven languages each:
  mlqa/{dev,test}-context-<code>-question-<code>.json, "validation" and "test". The mixture `mlqa`
  is of questions in their context's language (XLT there), `mlqa_cross` of all 49 pairs (G-XLT).
- `tydiqa_<language>` (Clark et al. 2020), gold passages in nine languages, mixture `tydiqa`:
  tydiqa/tydiqa.goldp.<code>.{train,dev}.json. "test" is the published dev set, as in XTREME.

Languages are called by ISO 639-3, as in `mlqa_eng_deu`. Mixtures are of the files that are there.
"""

import itertools

from tasks import text
from tasks.languages import iso639
from tasks.question_files import QuestionFiles, add_question_task

XQUAD_CODES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
MLQA_CODES = ("ar", "de", "en", "es", "hi", "vi", "zh")
TYDIQA_CODES = ("ar", "bn", "en", "fi", "id", "ko", "ru", "sw", "te")


def _add(name: str, question: str, context: str, paths: dict[str, str]) -> str:
    languages = iso639(question), iso639(context)
    return add_question_task(name, languages, QuestionFiles(paths)).name


def _mix(name: str, tasks: list[str]) -> None:
    text.add_language_mixture(name, tasks, exponent=0, present_only=True)


_SQUAD = {"train": "squad/train-v1.1.json", "validation": "squad/dev-v1.1.json"}
_add("squad", "en", "en", _SQUAD)

_xquad = [
    _add(f"xquad_{iso639(code)}", code, code, {"test": f"xquad/xquad.{code}.json"})
    for code in XQUAD_CODES
]
_mix("xquad", _xquad)
_mix("xquad_xtreme", [task for task in _xquad if task != "xquad_ron"])

_mlqa = {}
for _context, _question in itertools.product(MLQA_CODES, repeat=2):
    _file = f"context-{_context}-question-{_question}.json"
    _paths = {"validation": f"mlqa/dev-{_file}", "test": f"mlqa/test-{_file}"}
    _name = f"mlqa_{iso639(_context)}_{iso639(_question)}"
    _mlqa[_context, _question] = _add(_name, _question, _context, _paths)
_mix("mlqa", [_mlqa[code, code] for code in MLQA_CODES])
_mix("mlqa_cross", list(_mlqa.values()))

_tydiqa = []
for _code in TYDIQA_CODES:
    _file = f"tydiqa/tydiqa.goldp.{_code}"
    _paths = {"train": f"{_file}.train.json", "test": f"{_file}.dev.json"}
    _tydiqa.append(_add(f"tydiqa_{iso639(_code)}", _code, _code, _paths))
_mix("tydiqa", _tydiqa)
