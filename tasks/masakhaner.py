"""MasakhaNER 2.0: names and dates in news of 20 African languages (Adelani et al. 2022).

Files: $XL_FLAX_DATA_DIR/masakhaner2/<language>/{train,dev,test}.txt with a word and its tag in a
line, blank lines between sentences, as in MasakhaNER2.0/data of masakhane-io/masakhane-ner. Tasks
`masakhaner_<language>`. The mixture `masakhaner` is of the languages whose files are there.
"""

from tasks import labelled, text
from tasks.xnli import SPLITS

CODES = "bam bbj ewe fon hau ibo kin lug luo mos nya pcm sna swa tsn twi wol xho yor zul"
LABELS = (
    *("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
    *("B-DATE", "I-DATE"),
)

TASKS = []
for _code in CODES.split():
    _files = {split: f"masakhaner2/{_code}/{name}.txt" for split, name in SPLITS.items()}
    _source = labelled.WordFiles(_files, LABELS)
    TASKS.append(labelled.add_word_task(f"masakhaner_{_code}", _code, _source, LABELS))

text.add_language_mixture("masakhaner", TASKS, exponent=0, present_only=True)
