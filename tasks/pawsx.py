"""PAWS-X: do two sentences with the same words say the same, in 7 languages (Yang et al. 2019).

Files: $XL_FLAX_DATA_DIR/pawsx/{train,dev,test}-<code>.tsv with two sentences and the label ("1" if
they do), quoted as XTREME's download_data.sh writes them: by Python's csv.writer, with tabs. It
leaves the labels of "test" out: write columns 2 to 4 of the published x-final/<code>/test_2k.tsv,
in which nothing is quoted, in the same way. Tasks `pawsx_<language>`; train on `pawsx_eng` for
transfer from English. The mixture `pawsx` is of the languages whose files are there.
"""

from tasks import labelled, languages, text
from tasks.xnli import SPLITS

CODES = "en de es fr ja ko zh"
LABELS = ("0", "1")

READ = labelled.columns(LABELS, texts=(0, 1), label=2, quoted=True)

TASKS = []
for _code in CODES.split():
    _files = {split: f"pawsx/{name}-{_code}.tsv" for split, name in SPLITS.items()}
    _language = languages.iso639(_code)
    _source = labelled.LabelledFiles(_files, READ)
    TASKS.append(
        labelled.add_labelled_task(f"pawsx_{_language}", (_language,) * 2, _source, LABELS)
    )

text.add_language_mixture("pawsx", TASKS, exponent=0, present_only=True)
