"""Wikipedia through TensorFlow Datasets: `wikipedia_<code>`, and `wikipedia` for all languages.

An article is one example; the cache cuts it into rows. "train" is all but the last 2 % of TFDS's
only split, "validation" and "test" are 1 % each. TFDS finds its data in TFDS_DATA_DIR.
"""

from tasks import text
from tasks.prepared import PreparedTfds

DUMP, VERSION = "20230601", "1.0.0"
SPLITS = {"train": "train[:98%]", "validation": "train[98%:99%]", "test": "train[99%:]"}

# Wikipedia's code -> ISO 639-3, for the languages of XLM-R (Conneau et al. 2020, table 6).
TABLE = """
    af:afr am:amh ar:ara as:asm az:aze be:bel bg:bul bn:ben br:bre bs:bos ca:cat cs:ces cy:cym
    da:dan de:deu el:ell en:eng eo:epo es:spa et:est eu:eus fa:fas fi:fin fr:fra fy:fry ga:gle
    gd:gla gl:glg gu:guj ha:hau he:heb hi:hin hr:hrv hu:hun hy:hye id:ind is:isl it:ita ja:jpn
    jv:jav ka:kat kk:kaz km:khm kn:kan ko:kor ku:kur ky:kir la:lat lo:lao lt:lit lv:lav mg:mlg
    mk:mkd ml:mal mn:mon mr:mar ms:msa my:mya ne:nep nl:nld no:nor om:orm or:ori pa:pan pl:pol
    ps:pus pt:por ro:ron ru:rus sa:san sd:snd si:sin sk:slk sl:slv so:som sq:sqi sr:srp su:sun
    sv:swe sw:swa ta:tam te:tel th:tha tl:tgl tr:tur ug:uig uk:ukr ur:urd uz:uzb vi:vie xh:xho
    yi:yid zh:zho
"""
LANGUAGES = dict(pair.split(":") for pair in TABLE.split())


def source(code: str, data_dir: str | None = None) -> PreparedTfds:
    """The Wikipedia of a language as {"text", "title"}: strings."""
    return PreparedTfds(f"wikipedia/{DUMP}.{code}:{VERSION}", SPLITS, data_dir)


for _code, _language in LANGUAGES.items():
    text.add_text_task(f"wikipedia_{_code}", _language, source(_code))

text.add_language_mixture("wikipedia", [f"wikipedia_{code}" for code in LANGUAGES])
