"""The published treebanks of Universal Dependencies, by language.

Those of July 2026, as Stanza lists them (stanfordnlp/stanza, short_name_to_treebank.py).
"""

from typing import NamedTuple

from tasks import languages


class Treebank(NamedTuple):
    """A treebank: the folder UD_<Language>-<Name> with files <code>_<name>-ud-<split>.conllu."""

    folder: str  # "UD_English-EWT"
    prefix: str  # "en_ewt", with which its files begin
    language: str  # "eng"


# Language, its code in UD, its treebanks; lines that go on are indented.
TABLE = """
    Abaza abq ATB
    Abkhaz ab AbNC
    Afrikaans af AfriBooms
    Akkadian akk PISANDUB RIAO
    Akuntsu aqz TuDeT
    Albanian sq STAF TSA
    Alemannic gsw DIVITAL UZH
    Amharic am ATT
    Ancient_Greek grc Perseus PROIEL PTNK
    Ancient_Hebrew hbo PTNK
    Apurina apu UFPA
    Arabic ar NYUAD PADT PUD
    Armenian hy ArmTDP BSUT
    Assamese as AiW
    Assyrian aii AS
    Azerbaijani az TueCL
    Bambara bm CRB
    Basque eu BDT
    Bavarian bar MaiBaam
    Beja bej Autogramm
    Belarusian be HSE
    Bengali bn BRU
    Bhojpuri bho BHTB
    Bokota sab ChibErgIS
    Bororo bor BDT
    Brahui brh Kholum
    Breton br KEB
    Bulgarian bg BTB
    Buryat bxr BDT
    Cantonese yue HK
    Cappadocian cpg AMGiC TueCL
    Catalan ca AnCora
    Cebuano ceb GJA
    Central_Kurdish ckb Mukri
    Chinese zh Beginner CFL GSD GSDSimp HK PatentChar PUD
    Chintang ctn CTNTB
    Chukchi ckt HSE
    Classical_Armenian xcl CAVaL
    Classical_Chinese lzh Kyoto TueCL
    Coptic cop Bohairic Scriptorium
    Croatian hr SET
    Czech cs CAC CLTT FicTree PDTC Poetry PUD
    Danish da DDT
    Dutch nl Alpino LassySmall
    Egyptian egy PC
    English en Atis CHILDES CTeTex ESLSpok EWT GENTLE GUM GUMReddit LinES LittlePrince ParTUT
        Pronouns PUD
    Erzya myv JR
    Esperanto eo Cairo Prago
    Estonian et EDT EWT
    Faroese fo FarPaHC OFT
    Finnish fi FTB OOD PUD TDT
    French fr ALTS FQB GSD ParisStories ParTUT PoitevinDIVITAL PUD Rhapsodie Sequoia
    Frisian_Dutch qfn Fame
    Galician gl CTG PUD TreeGal
    Georgian ka GLC GNC
    German de GSD HDT LIT PUD
    Gheg aln GPS
    Gorontalo gor BungoLoLombi
    Gothic got PROIEL
    Greek el Cretan GDT GLCII GUD Lesbian Messinian
    Guajajara gub TuDeT
    Guarani gn OldTuDeT
    Gujarati gu GujTB
    Gwichin gwi TueCL
    Haitian_Creole ht Adolphe Autogramm
    Hausa ha EasternAutogramm NorthernAutogramm SouthernAutogramm WesternAutogramm
    Hebrew he HTB IAHLTknesset IAHLTwiki PostRab
    Highland_Puebla_Nahuatl azz ITML
    Hindi hi HDTB PUD
    Hittite hit HitTB
    Hungarian hu Szeged
    Icelandic is GC IcePaHC Modern PUD
    Ika arh ChibErgIS
    Indonesian id CSUI GSD PUD
    Irish ga Cadhan IDT TwittIrish
    Italian it ISDT KIParlaForest MarkIT Old ParlaMint ParTUT PoSTWITA PUD TWITTIRO Valico VIT
    Japanese ja BCCWJ BCCWJLUW GSD GSDLUW PUD PUDLUW
    Javanese jv CSUI
    Kaapor urb TuDeT
    Kadiweu kbc Unicamp
    Kangri xnr KDTB
    Karelian krl KKPP
    Karo arr TuDeT
    Kazakh kk KTB
    Khoekhoe naq KDT
    Kiche quc IU
    Komi_Permyak koi UH
    Komi_Zyrian kpv IKDP Lattice
    Korean ko GSD Kaist KSL LittlePrince PUD
    Kyrgyz ky KTMU TueCL
    Latgalian ltg Cairo
    Latin la CIRCSE ITTB LLCT Perseus PROIEL UDante
    Latvian lv Cairo LVTB
    Ligurian lij GLT
    Lithuanian lt ALKSNIS HSE
    Livvi olo KKPP
    Low_Saxon nds LSDC
    Luxembourgish lb LuxBank
    Macedonian mk MTB
    Madi jaa Jarawara
    Maghrebi_Arabic_French qaf Arabizi
    Makurap mpu TuDeT
    Malayalam ml UFAL
    Maltese mt MUDT
    Manx gv Cadhan
    Marathi mr CMUPAN UFAL
    Mbya_Guarani gun Thomas
    Middle_Armenian axm ArmTDP
    Middle_French frm ALTM PROFITEROLE
    Moksha mdf JR
    Munduruku myu TuDeT
    Naga nmf Suansu
    Naija pcm NSC
    Neapolitan nap RB
    Nenets yrk Tundra
    Nepali ne BK
    Nheengatu yrl CompLin
    North_Sami sme Giella
    Northern_Kurdish kmr Kurmanji
    Northwest_Gbaya gya Autogramm
    Norwegian no Bokmaal Nynorsk
    Occitan oc TTB
    Odia or ODTB
    Old_Church_Slavonic cu PROIEL
    Old_East_Slavic orv Birchbark RNC Ruthenian TOROT
    Old_English ang Cairo
    Old_French fro ALTM PROFITEROLE
    Old_Georgian oge GLC
    Old_Irish sga DipSGG DipWBG
    Old_Occitan pro CorAG
    Old_Turkish otk Clausal
    Ottoman_Turkish ota BOUN DUDU TueCL
    Pashto ps Prince Sikaram
    Paumari pad TueCL
    Persian fa PerDT Seraji
    Pesh pay ChibErgIS
    Phrygian xpg KUL
    Polish pl LFG MPDT PDB PUD
    Pomak qpm Philotis
    Portuguese pt Bosque CINTIL DANTEStocks GSD PetroGold Porttinari PUD
    Punjabi pa CS Rang
    Romanian ro ArT MolDoRo Nonstandard RRT SiMoNERo TueCL
    Russian ru GSD Poetry PUD SynTagRus Taiga
    Ruuli ruc RDT
    Sanskrit sa UFAL Vedic
    Scottish_Gaelic gd ARCOSG
    Serbian sr SET
    Shanghainese wuu ShUD
    Sicilian scn STB
    Sindhi sd Isra
    Sinhala si Appuwa STB
    Skolt_Sami sms Giellagas
    Slovak sk SNK
    Slovenian sl SSJ SST
    South_Levantine_Arabic ajp MADAR
    Southern_Kurdish sdh Garrusi
    Spanish es AnCora COSER GSD PUD
    Spanish_Sign_Language ssp LSE
    Swedish sv LinES Old PUD SweLL Talbanken
    Swedish_Sign_Language swl SSLC
    Tagalog tl TRG Ugnayan
    Tamil ta MWTT TTB
    Tatar tt NMCTT
    Teko eme TuDeT
    Telugu te MTG
    Telugu_English qte TECT
    Thai th PUD TUD
    Tswana tn Popapolelo
    Tupinamba tpn TuDeT
    Turkish tr Atis BOUN FrameNet GB IMST Kenet Penn PUD Tourism TueCL
    Turkish_English qti BUTR
    Turkish_German qtd SAGT
    Ukrainian uk IU ParlaMint
    Umbrian xum IKUVINA
    Upper_Sorbian hsb UFAL
    Urdu ur UDTB
    Uyghur ug UDT
    Uzbek uz TueCL UT UzUDT
    Veps vep VWT
    Vietnamese vi TueCL VTB
    Warlpiri wbp UFAL
    Welsh cy CCG
    Western_Armenian hyw ArmTDP
    Western_Sierra_Puebla_Nahuatl nhi MesoTree
    Wolof wo WTB
    Xavante xav XDT
    Xibe sjo XDT
    Yakut sah YKTDT
    Yiddish yi YiTB
    Yoruba yo YTB
    Yupik ess SLI
    Zaar say Autogramm
    Zazaki zza ZSD
"""


def _read() -> dict[str, Treebank]:
    treebanks, language = {}, []
    for line in TABLE.strip("\n").splitlines():
        words = line.split()
        if not line.startswith(" " * 8):
            language, words = words[:2], words[2:]
        name, code = language
        for word in words:
            folder, prefix = f"UD_{name}-{word}", f"{code}_{word.lower()}"
            treebanks[folder] = Treebank(folder, prefix, languages.iso639(code))
    return treebanks


TREEBANKS: dict[str, Treebank] = _read()
