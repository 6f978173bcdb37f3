"""XNLI: does a sentence follow from another one, in 15 languages (Conneau et al. 2018).

Files: $XL_FLAX_DATA_DIR/xnli/{train,dev,test}-<code>.tsv with premise, hypothesis and label, as
XTREME's download_data.sh writes them; it leaves the labels of "test" out, which XNLI-1.0 has.
Tasks `xnli_<language>`, as in `xnli_deu`. Train on `xnli_eng` (MultiNLI) for transfer from English.
The mixture `xnli` is of the languages whose files are there: its "train" holds translations, where
you have some as train-<code>.tsv. `tasks.snli_cad` has English pairs without MultiNLI.
"""

from tasks import labelled, languages, text

CODES = "en ar bg de el es fr hi ru sw th tr ur vi zh"
LABELS = ("entailment", "neutral", "contradiction")
SPLITS = {"train": "train", "validation": "dev", "test": "test"}

READ = labelled.columns(
    LABELS, texts=(0, 1), label=2, quoted=True, rename={"contradictory": "contradiction"}
)

TASKS = []
for _code in CODES.split():
    _files = {split: f"xnli/{name}-{_code}.tsv" for split, name in SPLITS.items()}
    _language = languages.iso639(_code)
    _source = labelled.LabelledFiles(_files, READ)
    TASKS.append(labelled.add_labelled_task(f"xnli_{_language}", (_language,) * 2, _source, LABELS))

text.add_language_mixture("xnli", TASKS, exponent=0, present_only=True)
