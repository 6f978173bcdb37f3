"""The published treebanks of Universal Dependencies, by language.

Those of July 2026, as Stanza lists them (stanfordnlp/stanza, short_name_to_treebank.py).
"""

from typing import NamedTuple


class Treebank(NamedTuple):
    """A treebank: the folder UD_<Language>-<Name> with files <code>_<name>-ud-<split>.conllu."""

    folder: str  # "UD_English-EWT"
    prefix: str  # "en_ewt", with which its files begin
    language: str  # "eng"


# Language, its code in UD, its code in ISO 639-3, its treebanks; lines that go on are indented.
TABLE = """
    Abaza abq abq ATB
    Abkhaz ab abk AbNC
    Afrikaans af afr AfriBooms
    Akkadian akk akk PISANDUB RIAO
    Akuntsu aqz aqz TuDeT
    Albanian sq sqi STAF TSA
    Alemannic gsw gsw DIVITAL UZH
    Amharic am amh ATT
    Ancient_Greek grc grc Perseus PROIEL PTNK
    Ancient_Hebrew hbo hbo PTNK
    Apurina apu apu UFPA
    Arabic ar ara NYUAD PADT PUD
    Armenian hy hye ArmTDP BSUT
    Assamese as asm AiW
    Assyrian aii aii AS
    Azerbaijani az aze TueCL
    Bambara bm bam CRB
    Basque eu eus BDT
    Bavarian bar bar MaiBaam
    Beja bej bej Autogramm
    Belarusian be bel HSE
    Bengali bn ben BRU
    Bhojpuri bho bho BHTB
    Bokota sab sab ChibErgIS
    Bororo bor bor BDT
    Brahui brh brh Kholum
    Breton br bre KEB
    Bulgarian bg bul BTB
    Buryat bxr bxr BDT
    Cantonese yue yue HK
    Cappadocian cpg cpg AMGiC TueCL
    Catalan ca cat AnCora
    Cebuano ceb ceb GJA
    Central_Kurdish ckb ckb Mukri
    Chinese zh zho Beginner CFL GSD GSDSimp HK PatentChar PUD
    Chintang ctn ctn CTNTB
    Chukchi ckt ckt HSE
    Classical_Armenian xcl xcl CAVaL
    Classical_Chinese lzh lzh Kyoto TueCL
    Coptic cop cop Bohairic Scriptorium
    Croatian hr hrv SET
    Czech cs ces CAC CLTT FicTree PDTC Poetry PUD
    Danish da dan DDT
    Dutch nl nld Alpino LassySmall
    Egyptian egy egy PC
    English en eng Atis CHILDES CTeTex ESLSpok EWT GENTLE GUM GUMReddit LinES LittlePrince ParTUT
        Pronouns PUD
    Erzya myv myv JR
    Esperanto eo epo Cairo Prago
    Estonian et est EDT EWT
    Faroese fo fao FarPaHC OFT
    Finnish fi fin FTB OOD PUD TDT
    French fr fra ALTS FQB GSD ParisStories ParTUT PoitevinDIVITAL PUD Rhapsodie Sequoia
    Frisian_Dutch qfn qfn Fame
    Galician gl glg CTG PUD TreeGal
    Georgian ka kat GLC GNC
    German de deu GSD HDT LIT PUD
    Gheg aln aln GPS
    Gorontalo gor gor BungoLoLombi
    Gothic got got PROIEL
    Greek el ell Cretan GDT GLCII GUD Lesbian Messinian
    Guajajara gub gub TuDeT
    Guarani gn grn OldTuDeT
    Gujarati gu guj GujTB
    Gwichin gwi gwi TueCL
    Haitian_Creole ht hat Adolphe Autogramm
    Hausa ha hau EasternAutogramm NorthernAutogramm SouthernAutogramm WesternAutogramm
    Hebrew he heb HTB IAHLTknesset IAHLTwiki PostRab
    Highland_Puebla_Nahuatl azz azz ITML
    Hindi hi hin HDTB PUD
    Hittite hit hit HitTB
    Hungarian hu hun Szeged
    Icelandic is isl GC IcePaHC Modern PUD
    Ika arh arh ChibErgIS
    Indonesian id ind CSUI GSD PUD
    Irish ga gle Cadhan IDT TwittIrish
    Italian it ita ISDT KIParlaForest MarkIT Old ParlaMint ParTUT PoSTWITA PUD TWITTIRO Valico VIT
    Japanese ja jpn BCCWJ BCCWJLUW GSD GSDLUW PUD PUDLUW
    Javanese jv jav CSUI
    Kaapor urb urb TuDeT
    Kadiweu kbc kbc Unicamp
    Kangri xnr xnr KDTB
    Karelian krl krl KKPP
    Karo arr arr TuDeT
    Kazakh kk kaz KTB
    Khoekhoe naq naq KDT
    Kiche quc quc IU
    Komi_Permyak koi koi UH
    Komi_Zyrian kpv kpv IKDP Lattice
    Korean ko kor GSD Kaist KSL LittlePrince PUD
    Kyrgyz ky kir KTMU TueCL
    Latgalian ltg ltg Cairo
    Latin la lat CIRCSE ITTB LLCT Perseus PROIEL UDante
    Latvian lv lav Cairo LVTB
    Ligurian lij lij GLT
    Lithuanian lt lit ALKSNIS HSE
    Livvi olo olo KKPP
    Low_Saxon nds nds LSDC
    Luxembourgish lb ltz LuxBank
    Macedonian mk mkd MTB
    Madi jaa jaa Jarawara
    Maghrebi_Arabic_French qaf qaf Arabizi
    Makurap mpu mpu TuDeT
    Malayalam ml mal UFAL
    Maltese mt mlt MUDT
    Manx gv glv Cadhan
    Marathi mr mar CMUPAN UFAL
    Mbya_Guarani gun gun Thomas
    Middle_Armenian axm axm ArmTDP
    Middle_French frm frm ALTM PROFITEROLE
    Moksha mdf mdf JR
    Munduruku myu myu TuDeT
    Naga nmf nmf Suansu
    Naija pcm pcm NSC
    Neapolitan nap nap RB
    Nenets yrk yrk Tundra
    Nepali ne nep BK
    Nheengatu yrl yrl CompLin
    North_Sami sme sme Giella
    Northern_Kurdish kmr kmr Kurmanji
    Northwest_Gbaya gya gya Autogramm
    Norwegian no nor Bokmaal Nynorsk
    Occitan oc oci TTB
    Odia or ori ODTB
    Old_Church_Slavonic cu chu PROIEL
    Old_East_Slavic orv orv Birchbark RNC Ruthenian TOROT
    Old_English ang ang Cairo
    Old_French fro fro ALTM PROFITEROLE
    Old_Georgian oge oge GLC
    Old_Irish sga sga DipSGG DipWBG
    Old_Occitan pro pro CorAG
    Old_Turkish otk otk Clausal
    Ottoman_Turkish ota ota BOUN DUDU TueCL
    Pashto ps pus Prince Sikaram
    Paumari pad pad TueCL
    Persian fa fas PerDT Seraji
    Pesh pay pay ChibErgIS
    Phrygian xpg xpg KUL
    Polish pl pol LFG MPDT PDB PUD
    Pomak qpm qpm Philotis
    Portuguese pt por Bosque CINTIL DANTEStocks GSD PetroGold Porttinari PUD
    Punjabi pa pan CS Rang
    Romanian ro ron ArT MolDoRo Nonstandard RRT SiMoNERo TueCL
    Russian ru rus GSD Poetry PUD SynTagRus Taiga
    Ruuli ruc ruc RDT
    Sanskrit sa san UFAL Vedic
    Scottish_Gaelic gd gla ARCOSG
    Serbian sr srp SET
    Shanghainese wuu wuu ShUD
    Sicilian scn scn STB
    Sindhi sd snd Isra
    Sinhala si sin Appuwa STB
    Skolt_Sami sms sms Giellagas
    Slovak sk slk SNK
    Slovenian sl slv SSJ SST
    South_Levantine_Arabic ajp ajp MADAR
    Southern_Kurdish sdh sdh Garrusi
    Spanish es spa AnCora COSER GSD PUD
    Spanish_Sign_Language ssp ssp LSE
    Swedish sv swe LinES Old PUD SweLL Talbanken
    Swedish_Sign_Language swl swl SSLC
    Tagalog tl tgl TRG Ugnayan
    Tamil ta tam MWTT TTB
    Tatar tt tat NMCTT
    Teko eme eme TuDeT
    Telugu te tel MTG
    Telugu_English qte qte TECT
    Thai th tha PUD TUD
    Tswana tn tsn Popapolelo
    Tupinamba tpn tpn TuDeT
    Turkish tr tur Atis BOUN FrameNet GB IMST Kenet Penn PUD Tourism TueCL
    Turkish_English qti qti BUTR
    Turkish_German qtd qtd SAGT
    Ukrainian uk ukr IU ParlaMint
    Umbrian xum xum IKUVINA
    Upper_Sorbian hsb hsb UFAL
    Urdu ur urd UDTB
    Uyghur ug uig UDT
    Uzbek uz uzb TueCL UT UzUDT
    Veps vep vep VWT
    Vietnamese vi vie TueCL VTB
    Warlpiri wbp wbp UFAL
    Welsh cy cym CCG
    Western_Armenian hyw hyw ArmTDP
    Western_Sierra_Puebla_Nahuatl nhi nhi MesoTree
    Wolof wo wol WTB
    Xavante xav xav XDT
    Xibe sjo sjo XDT
    Yakut sah sah YKTDT
    Yiddish yi yid YiTB
    Yoruba yo yor YTB
    Yupik ess ess SLI
    Zaar say say Autogramm
    Zazaki zza zza ZSD
"""


def _read() -> dict[str, Treebank]:
    treebanks, language = {}, []
    for line in TABLE.strip("\n").splitlines():
        words = line.split()
        if not line.startswith(" " * 8):
            language, words = words[:3], words[3:]
        name, code, iso = language
        for word in words:
            folder, prefix = f"UD_{name}-{word}", f"{code}_{word.lower()}"
            treebanks[folder] = Treebank(folder, prefix, iso)
    return treebanks


TREEBANKS: dict[str, Treebank] = _read()
