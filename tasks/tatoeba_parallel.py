"""Tatoeba's test sets as text to train on: each language with English, `tatoeba_pairs`.

Tasks `tatoeba_pairs_<a>_<b>`, as in `tatoeba_pairs_deu_eng`: up to 1,000 pairs, all in the split
"train". Who trains on them has no test in `tatoeba_<code>` any more: its scores then measure
memory. `Filter.exclude = ['tatoeba_deu', ...]` keeps the sentences of a test out of whatever is
trained on, these tasks included. The mixture is of the languages whose files are there.
"""

from tasks import parallel, text
from tasks.tatoeba import CODES

PAIRS = []
for _code in CODES.split():
    # Sorted by language, not by code: tatoeba_pairs_eng_zho, whatever the file calls Chinese.
    _files = {text.iso639(code): f"tatoeba/tatoeba.{_code}-eng.{code}" for code in (_code, "eng")}
    _pair = sorted(_files)
    _source = parallel.ParallelFiles({"train": [_files[language] for language in _pair]})
    _name = "tatoeba_pairs_" + "_".join(_pair)
    PAIRS.append(parallel.add_parallel_task(_name, _pair, _source))

text.add_language_mixture("tatoeba_pairs", PAIRS, present_only=True)
