"""What corpora call languages, and what results call them: ISO 639-3.

Corpora use two letters or three, name some languages by one of their varieties, and set a script
or a country behind: `iso639` has one name for each language.
"""

from collections.abc import Collection

# ISO 639-1 -> ISO 639-3 (the table of SIL, the registration authority).
TABLE = """
    aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:ara as:asm av:ava ay:aym az:aze ba:bak
    be:bel bg:bul bi:bis bm:bam bn:ben bo:bod br:bre bs:bos ca:cat ce:che ch:cha co:cos cr:cre
    cs:ces cu:chu cv:chv cy:cym da:dan de:deu dv:div dz:dzo ee:ewe el:ell en:eng eo:epo es:spa
    et:est eu:eus fa:fas ff:ful fi:fin fj:fij fo:fao fr:fra fy:fry ga:gle gd:gla gl:glg gn:grn
    gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:hye hz:her ia:ina id:ind
    ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl it:ita iu:iku ja:jpn jv:jav ka:kat kg:kon ki:kik
    kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas ku:kur kv:kom kw:cor ky:kir la:lat
    lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub lv:lav mg:mlg mh:mah mi:mri mk:mkd ml:mal
    mn:mon mr:mar ms:msa mt:mlt my:mya na:nau nb:nob nd:nde ne:nep ng:ndo nl:nld nn:nno no:nor
    nr:nbl nv:nav ny:nya oc:oci oj:oji om:orm or:ori os:oss pa:pan pi:pli pl:pol ps:pus pt:por
    qu:que rm:roh rn:run ro:ron ru:rus rw:kin sa:san sc:srd sd:snd se:sme sg:sag sh:hbs si:sin
    sk:slk sl:slv sm:smo sn:sna so:som sq:sqi sr:srp ss:ssw st:sot su:sun sv:swe sw:swa ta:tam
    te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi ty:tah
    ug:uig uk:ukr ur:urd uz:uzb ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho yi:yid yo:yor za:zha
    zh:zho zu:zul
"""
ISO639 = dict(pair.split(":") for pair in TABLE.split())

# The variety by which a corpus names a language that others name as a whole: FLORES-200 and Tatoeba
# have standard varieties, Wikipedia and XTREME the macrolanguages of ISO 639-3.
VARIETIES = {
    "als": "sqi",
    "arb": "ara",
    "ayr": "aym",
    "azj": "aze",
    "cmn": "zho",
    "fil": "tgl",
    "gaz": "orm",
    "khk": "mon",
    "kmr": "kur",
    "lvs": "lav",
    "npi": "nep",
    "ory": "ori",
    "pbt": "pus",
    "pes": "fas",
    "plt": "mlg",
    "quy": "que",
    "swh": "swa",
    "uzn": "uzb",
    "ydd": "yid",
    "zsm": "msa",
}


def iso639(code: str) -> str:
    """The language (ISO 639-3) of a corpus's code: "zh", "cmn" and "zho-CN" are all "zho"."""
    language = code.replace("_", "-").split("-")[0]
    language = ISO639.get(language, language)
    return VARIETIES.get(language, language)


def name(code: str, others: Collection[str]) -> str:
    """What results call a corpus's code: as `iso639`, but codes of one language stay apart.

    Args:
      code: as in "zho_Hant" or "por-BR".
      others: the codes that stand beside the main one of their language: "zho_Hant" is not "zho".
    """
    language = iso639(code)
    if code not in others:
        return language
    return "_".join([language, *code.replace("-", "_").split("_")[1:]])
