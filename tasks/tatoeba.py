"""Tatoeba: up to 1,000 short sentences of a language and their English translations.

Files: $XL_FLAX_DATA_DIR/tatoeba/tatoeba.<code>-eng.{<code>,eng}, LASER's test sets in 112 languages
(Artetxe and Schwenk 2019; data/tatoeba/v1 of facebookresearch/LASER), of which XTREME takes 36 for
retrieval. Each language is a mixture of its own, `tatoeba_<code>`, with the tasks
`tatoeba_<code>_<code>` and `tatoeba_<code>_eng` and the split "test".
"""

from tasks import text

CODES = """
    afr amh ang ara arq arz ast awa aze bel ben ber bos bre bul cat cbk ceb ces cha cmn cor csb
    cym dan deu dsb dtp ell epo est eus fao fin fra fry gla gle glg gsw heb hin hrv hsb hun hye
    ido ile ina ind isl ita jav jpn kab kat kaz khm kor kur kzj lat lfn lit lvs mal mar max mhr
    mkd mon nds nld nno nob nov oci orv pam pes pms pol por ron rus slk slv spa sqi srp swe swg
    swh tam tat tel tgl tha tuk tur tzl uig ukr urd uzb vie war wuu xho yid yue zsm
"""

for _code in CODES.split():
    text.add_aligned_tasks(
        f"tatoeba_{_code}",
        {code: f"tatoeba/tatoeba.{_code}-eng.{code}" for code in (_code, "eng")},
        languages={_code: text.iso639(_code)},
    )
