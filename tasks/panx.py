"""PAN-X, or WikiANN: names of persons, organisations and places in Wikipedia (Pan et al. 2017).

Files: $XL_FLAX_DATA_DIR/panx/{train,dev,test}-<code>.tsv with a word and its tag in a line, blank
lines between sentences: the balanced splits of Rahimi et al. (2019), as XTREME's download_data.sh
writes them (it leaves the tags of "test" out). The "en:" before each word of the original release
may be there or not. Tasks `panx_<language>`, of XTREME's 40 languages and the 8 that XTREME-R adds.
Train on `panx_eng` for transfer from English. Mixtures are of the languages whose files are there:

- `panx`: all languages.
- `panx_xtreme`: XTREME's 40.
"""

from tasks import labelled, languages, text
from tasks.xnli import SPLITS

XTREME = """
    en ar he vi id jv ms tl eu ml ta te af nl de el bn hi mr ur fa fr it pt es bg ru ja ka ko th sw
    yo my zh kk tr et fi hu
"""
CODES = f"{XTREME} qu pl uk az lt pa gu ro"
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")

for _code in CODES.split():
    _files = {split: f"panx/{name}-{_code}.tsv" for split, name in SPLITS.items()}
    _language = languages.iso639(_code)
    _source = labelled.WordFiles(_files, LABELS, prefix=f"{_code}:")
    labelled.add_word_task(f"panx_{_language}", _language, _source, LABELS)

for _name, _codes in (("panx", CODES), ("panx_xtreme", XTREME)):
    _tasks = [f"panx_{languages.iso639(code)}" for code in _codes.split()]
    text.add_language_mixture(_name, _tasks, exponent=0, present_only=True)
