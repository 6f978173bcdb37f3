"""NTREX as text to train on: each language with English, `ntrex_pairs`.

Tasks `ntrex_<a>_<b>`, as in `ntrex_deu_eng`: 1,997 pairs, all in the split "train". Who trains on
them has no test in `ntrex` any more: its scores then measure memory. `Filter.exclude = ['ntrex']`
keeps every sentence of the test out of whatever is trained on, these tasks included. The mixture is
of the languages whose files are there; other varieties of English are no translations.
"""

from tasks import parallel, text
from tasks.ntrex import FILES

ENGLISH = "eng"
PAIRS = []
for _language in sorted(name for name in FILES if not name.startswith(ENGLISH)):
    _pair = sorted((_language, ENGLISH))
    _name = "ntrex_" + "_".join(_pair)
    _source = parallel.ParallelFiles({"train": [FILES[language] for language in _pair]})
    PAIRS.append(parallel.add_parallel_task(_name, _pair, _source))

text.add_language_mixture("ntrex_pairs", PAIRS, present_only=True)
