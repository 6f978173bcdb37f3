"""Inference in English: SNLI pairs and their counterfactual revisions (Kaushik et al. 2020).

Files: $XL_FLAX_DATA_DIR/nli_en/snli_cad.{train,dev,test}.tsv with the columns sentence1, sentence2
and gold_label, "all_combined" of acmi-lab/counterfactually-augmented-data: 8,330 pairs to train on,
small enough for any machine. The task `snli_cad_eng` has the labels of `xnli`, which it can be
evaluated on.
"""

from tasks import labelled
from tasks.xnli import LABELS, SPLITS

SOURCE = labelled.LabelledFiles(
    {split: f"nli_en/snli_cad.{name}.tsv" for split, name in SPLITS.items()},
    labelled.columns(LABELS, texts=("sentence1", "sentence2"), label="gold_label", quoted=True),
)
labelled.add_labelled_task("snli_cad_eng", ("eng", "eng"), SOURCE, LABELS)
