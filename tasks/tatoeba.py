"""Tatoeba: up to 1,000 short sentences of a language and their English translations.

Files: $XL_FLAX_DATA_DIR/tatoeba/tatoeba.<code>-eng.{<code>,eng}, LASER's test sets (Artetxe and
Schwenk 2019), the retrieval task of XTREME. Each language is a mixture of its own,
`tatoeba_<code>`, with the tasks `tatoeba_<code>_<code>` and `tatoeba_<code>_eng` and the split
"test".
"""

from tasks import text

CODES = """
    afr amh ara ben bul ces cmn deu epo est eus fin fra heb hin hye ind ita jav kaz mal mar nld pes
    pol por rus spa swh tam tel tgl tur ukr urd vie
"""

for _code in CODES.split():
    text.add_aligned_tasks(
        f"tatoeba_{_code}",
        {code: f"tatoeba/tatoeba.{_code}-eng.{code}" for code in (_code, "eng")},
        languages={_code: text.iso639(_code)},
    )
