"""NTREX-128: 1,997 sentences of news, translated line by line (Federmann et al. 2022).

Files: $XL_FLAX_DATA_DIR/ntrex/newstest2019-{src.eng,ref.<code>}.txt, as in NTREX-128/ of
MicrosoftTranslator/NTREX, 129 translations. Tasks `ntrex_<language>`, all with the split "test"
only; a variety beside the main one of its language has its own name (`ntrex_por_BR`,
`ntrex_zho_TW`). Mixtures for retrieval, each of the languages whose files are there:

- `ntrex`: all languages.
- `ntrex_bible`: those that `bible` has too.
"""

from tasks import languages, text
from tasks.bible import LANGUAGES as BIBLE_LANGUAGES

CODES = """
    eng afr amh arb aze-Latn bak bel bem ben bod bos bul cat ces ckb-Arab cym dan deu div dzo ell
    eng-GB eng-IN eng-US est eus ewe fao fas fij fil fin fra fra-CA fuc gle glg gsw-BE gsw-ZH guj
    hau heb hin hmn hrv hun hye ibo ind isl ita jpn kan kat kaz khm kin kir kmr kor lao lav lit ltz
    mal mar mey mkd mlg mlt mon mri msa mya nde nep nld nno nob nso nya orm pan pol por por-BR prs
    pus ron rus shi sin slk slv smo sna-Latn snd-Arab som spa spa-MX sqi srp-Cyrl srp-Latn ssw swa
    swe tah tam tat tel tgk-Cyrl tha tir ton tsn tuk tur uig ukr urd uzb ven vie wol xho yor yue
    zho-CN zho-TW zul
"""
VARIETIES = "eng-GB eng-IN eng-US fra-CA gsw-ZH por-BR spa-MX srp-Latn zho-TW"
FILES = {
    languages.name(code, VARIETIES.split()): (
        f"ntrex/newstest2019-{'src' if code == 'eng' else 'ref'}.{code}.txt"
    )
    for code in CODES.split()
}

text.add_aligned_tasks("ntrex", FILES, present_only=True)
text.add_language_mixture(
    "ntrex_bible",
    [f"ntrex_{language}" for language in FILES if language in BIBLE_LANGUAGES],
    exponent=0,
    present_only=True,
)
