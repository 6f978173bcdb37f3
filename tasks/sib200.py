"""SIB-200: the sentences of FLORES-200, the same in every language, with their topics.

Files: $XL_FLAX_DATA_DIR/sib200/<code>/{train,dev,test}.tsv with the columns index_id, category and
text, as in data/annotated of dadelani/sib-200 (Adelani et al. 2024), in 205 languages and scripts.
Here they are plain text, as tasks `sib200_<code>`, and, as sentence i is the same in all languages,
parallel text: the mixture `sib200`, of which "test" (204 sentences) serves retrieval.
The tasks `sib200_topics_<code>` and the mixture `sib200_topics` have the topics as labels: train on
`sib200_topics_eng_Latn` for transfer from English, on `sib200_topics` for all languages at once.
Mixtures are of the languages whose files are there.
"""

from collections.abc import Iterator, Sequence

from tasks import labelled, labelled_files, languages, text
from xl_flax.errors import UserError

CODES = """
    eng_Latn ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn
    amh_Ethi apc_Arab arb_Arab arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva
    ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva
    bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn
    ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek epo_Latn
    est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn
    gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva
    hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn
    jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl kbp_Latn
    kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn knc_Arab knc_Latn
    kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
    lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab
    min_Latn mkd_Cyrl mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn
    npi_Deva nqo_Nkoo nso_Latn nus_Latn nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn
    pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl
    sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn
    snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
    szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi
    tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl
    umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn
    yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
"""
# Other scripts of languages that are there in their main one.
OTHER_SCRIPTS = "ace_Arab arb_Latn bjn_Arab kas_Deva knc_Arab min_Arab taq_Tfng zho_Hant"
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
HEADER = ["index_id", "category", "text"]
TOPICS = (
    "entertainment",
    "geography",
    "health",
    "politics",
    "science/technology",
    "sports",
    "travel",
)


def read_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and columns of a file, which quotes some sentences as CSV does."""
    for number, line in text.numbered_lines(path):
        row = labelled_files.quoted_cells(path, number, line)
        if (number == 1 and row != HEADER) or len(row) != len(HEADER) or not row[2].strip():
            raise UserError(
                f"{path}, line {number}: expected the columns {', '.join(HEADER)}, set apart by "
                f"tabs, with a header, not {line[:40]!r}"
            )
        if number > 1:
            yield number, row


def read_sentences(path: str, split: str) -> Iterator[str]:
    """Yields the sentences of a file."""
    del split
    return (sentence for _, (_, _, sentence) in read_rows(path))


def read_topics(paths: Sequence[str], split: str) -> Iterator[tuple[str, str, str]]:
    """Yields sentence, topic and identifier."""
    del split
    for path in paths:
        for number, (identifier, topic, sentence) in read_rows(path):
            labelled.check_label(path, number, topic, TOPICS)
            yield sentence, topic, identifier


_first = None
for _code in CODES.split():
    _paths = {split: f"sib200/{_code}/{name}" for split, name in FILES.items()}
    _language = languages.name(_code, OTHER_SCRIPTS.split())
    _source = text.TextFiles(_paths, read_sentences, aligned_with=_first)
    _first = _first or _source
    text.add_text_task(f"sib200_{_code}", _language, _source)
    _topics = labelled.LabelledFiles(_paths, read_topics)
    labelled.add_labelled_task(f"sib200_topics_{_code}", _language, _topics, TOPICS, ids=True)

for _name in ("sib200", "sib200_topics"):
    text.add_language_mixture(
        _name, [f"{_name}_{code}" for code in CODES.split()], exponent=0, present_only=True
    )
