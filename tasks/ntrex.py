"""NTREX: 1,997 sentences of news, translated from English, line by line (Federmann et al. 2022).

Files: $XL_FLAX_DATA_DIR/ntrex/newstest2019-{src.eng,ref.<code>}.txt. Tasks `ntrex_<language>`, all
with the split "test" only; mixtures for retrieval:

- `ntrex`: all languages.
- `ntrex_bible`: those that `bible` has too.
"""

from tasks import text
from tasks.bible import LANGUAGES as BIBLE_LANGUAGES

CODES = """
    eng amh arb ben ces deu est eus fas fin fra heb hin ind ita pol rus spa swa tam tur ukr urd vie
    yor zho-CN
"""
FILES = {
    text.iso639(code): f"ntrex/newstest2019-{'src' if code == 'eng' else 'ref'}.{code}.txt"
    for code in CODES.split()
}

text.add_aligned_tasks("ntrex", FILES)
text.add_language_mixture(
    "ntrex_bible",
    [f"ntrex_{language}" for language in FILES if language in BIBLE_LANGUAGES],
    exponent=0,
)
