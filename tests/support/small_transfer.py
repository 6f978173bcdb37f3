"""Two synthetic languages without a letter in common, and what is trained and tested in them.

Each kind of label has its tasks, `small_KIND_LANGUAGE`, and a Gin file, KIND.gin.
"""

from pathlib import Path

from xl_flax import cli
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import prepare
from xl_flax.data.required import required
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.vocabulary import VocabularyConfig, run_vocabulary
from xl_flax.data.vocabulary_training import Corpus, train_model

TASKS = """
import functools
import tensorflow as tf
from tasks import labelled, parallel, question_files, synthetic_labelled, synthetic_parallel
from tasks import synthetic_questions, synthetic_trees, text, trees
from tasks.synthetic import FAMILY, source
from xl_flax.data.synthetic.passages import passage

TEXT = {"train": 4000, "validation": 100, "test": 100}
LABELLED = {"train": 1500, "validation": 150, "test": 250}
LANGUAGES = ("alpha", "beta")
STRING = tf.TensorSpec((), tf.string)


def generated(make, name, keys=("text",)):
    '''What `make` says of one language.'''
    one = functools.partial(make, FAMILY[name])
    return synthetic_labelled.source(one, {key: STRING for key in keys}, LABELLED)


def done_to(language, split, index):
    '''A sentence, and what it is that something is done to.'''
    said = synthetic_labelled.sentence(language, split, index, "done_to")
    tags = dict(zip(said.relations, said.upos, strict=True))
    label = {"NOUN": "thing", "PROPN": "name"}.get(tags.get("obj"), "none")
    return {"text": said.text, "label": label}


def place(language, split, index):
    '''A question on where somebody is, of a passage that names two places.'''
    asked = passage(language, split, index).questions
    (first, *_) = [
        i for i, q in enumerate(asked) if any(n.concept == "where" for n in q.sentence.meaning)
    ]
    return synthetic_questions.question(language, split, index * len(asked) + first)


for n in LANGUAGES:
    text.add_text_task(f"small_{n}", n, source(FAMILY[n], TEXT))
    labelled.add_word_task(
        f"small_pos_{n}", n, generated(synthetic_labelled.tagged, n), synthetic_labelled.UPOS,
        preprocessors=[labelled.split_words],
    )
    objects = generated(done_to, n, ("text", "label"))
    labelled.add_labelled_task(f"small_objects_{n}", (n,), objects, ("thing", "name", "none"))
    trees.add_tree_task(
        f"small_trees_{n}", n, generated(synthetic_trees.tree, n), preprocessors=[trees.split_trees]
    )
    questions = generated(place, n, question_files.KEYS)
    question_files.add_question_task(f"small_questions_{n}", (n, n), questions)
pairs = synthetic_parallel.source([FAMILY[n] for n in LANGUAGES], TEXT)
parallel.add_parallel_task("small_pairs", LANGUAGES, pairs)
for kind in ("", "pos_", "objects_", "trees_", "questions_"):
    tasks = [f"small_{kind}{n}" for n in LANGUAGES]
    text.add_language_mixture(f"small_{kind}".rstrip("_"), tasks, exponent=0)
"""
PRETRAIN = """
include 'gin/runs/quickstart.gin'
include 'gin/objectives/tlm.gin'
TrainConfig.objectives = [@MaskedLM(), @TranslationLM()]
PAIRS = 'small_pairs'
PAIRS_LENGTH = 64
BATCH_SIZE = 16
TLM_BATCH_SIZE = 16
MODEL_DIR = '{folder}/pretrained'
CACHE_DIR = '{folder}/cache'
VOCABULARY = '{folder}/vocabulary.model'
VOCAB_SIZE = 1200
TASK_MODULES = ['small_transfer_tasks']
MIXTURE = 'small'
STEPS = {steps}
TrainConfig.held_out = []
TrainConfig.checkpoint_every = 10000
"""
POS = """
include 'gin/runs/finetune_synthetic_pos.gin'
CHECKPOINT = '{folder}/pretrained'
MODEL_DIR = '{folder}/pos/pretrained'
CACHE_DIR = '{folder}/cache'
TASK_MODULES = ['small_transfer_tasks']
MIXTURE = 'small_pos_alpha'
STEPS = {steps}
OptimizerConfig.warmup_steps = 10
Periodic.every = {steps}
dev/TaggingScores.mixture = 'small_pos'
Best.metric = 'eval/small_pos/f1/alpha'
TaggingScores.mixture = 'small_pos'
TaggingScores.train = 'small_pos_alpha'
"""
# The other kinds: their objective's Gin file, and what scores them.
OTHERS = {
    "objects": (
        "classification",
        "ClassificationScores",
        "SequenceClassification.pooling = 'mean'\nClassificationScores.train = %MIXTURE",
    ),
    "trees": ("parsing", "ParsingScores", "ParsingScores.train = %MIXTURE"),
    "questions": ("questions", "AnswerScores", "Rows.stride = 16\nAnswerScores.stride = 16"),
}
OTHER = """
include 'gin/finetune.gin'
include 'gin/objectives/{objective}.gin'
CHECKPOINT = '{folder}/pretrained'
MODEL_DIR = '{folder}/{kind}/pretrained'
CACHE_DIR = '{folder}/cache'
TASK_MODULES = ['small_transfer_tasks']
MIXTURE = 'small_{kind}_alpha'
LENGTH = 96
BATCH_SIZE = 32
STEPS = {steps}
pretrained_encoder.scan = 'unroll'
OptimizerConfig.learning_rate = 1e-3
OptimizerConfig.warmup_steps = 10
TrainConfig.best = None
EvaluateConfig.evaluations = [@{evaluation}()]
{evaluation}.mixture = 'small_{kind}'
{evaluation}.length = 96
{more}
"""


def make_data(folder: Path, pretraining: int, steps: int) -> None:
    """Writes a module with tasks, a vocabulary, and Gin files: pretrain.gin and KIND.gin."""
    (folder / "small_transfer_tasks.py").write_text(TASKS)
    (folder / "pretrain.gin").write_text(PRETRAIN.format(folder=folder, steps=pretraining))
    (folder / "pos.gin").write_text(POS.format(folder=folder, steps=steps))
    for kind, (objective, evaluation, more) in OTHERS.items():
        (folder / f"{kind}.gin").write_text(
            OTHER.format(
                folder=folder,
                steps=steps,
                kind=kind,
                more=more,
                objective=objective,
                evaluation=evaluation,
            )
        )
    corpora = [
        Corpus(n, 2000, [corpus_sentence(FAMILY[n], "train", i).text for i in range(2000)], 1)
        for n in ("alpha", "beta")
    ]
    config = VocabularyConfig(
        "small", str(folder / "vocabulary.model"), 1200, model_type="bpe", character_coverage=1.0
    )
    (folder / "vocabulary.model").write_bytes(train_model(corpora, config))


def make_caches(folder: Path, *kinds: str) -> None:
    """Caches what these kinds read, once there is a pretrained encoder: in one process for all.

    The module with tasks must be found, here and in other processes.
    """
    specs = {}
    for kind in kinds:
        cli.load_gin([f"{folder}/{kind}.gin"])
        specs |= dict.fromkeys(required())
    prepare([*specs], Cache(), run_vocabulary(), [f"--gin_file={folder}/{kinds[0]}.gin"])
