"""Labelled data through TFDS, on small builders with the names and features of the real ones."""

import pytest
import seqio
import tensorflow_datasets as tfds

from tasks import labelled_tfds, panx, pawsx, udpos, xnli
from xl_flax.data.seqio_tasks import examples, split_tasks
from xl_flax.errors import UserError

Text, Sequence = tfds.features.Text, tfds.features.Sequence
CODES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


def builder(name, version, config, features, rows, splits=("train", "validation", "test")):
    """A small builder of this name, with the same rows in every split."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """As TFDS's own: same name, version, configuration and features."""

        # TFDS looks for the source of classes in packages with a library that it does not require.
        __module__ = "small_builder"

        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config),) if config else ()

        def _info(self):
            kept = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=kept)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            yield from enumerate(rows)

    Small.name = name
    return Small


def labels(names):
    return tfds.features.ClassLabel(names=list(names))


BUILDERS = [
    builder(
        "xnli",
        "1.1.0",
        None,
        {
            "premise": tfds.features.Translation(languages=CODES),
            "hypothesis": tfds.features.TranslationVariableLanguages(languages=CODES),
            "label": labels(xnli.LABELS),
        },
        [
            {
                "premise": {code: f"abe {code}" for code in CODES},
                "hypothesis": {code: f"be {code}" for code in CODES},
                "label": "contradiction",
            }
        ],
        splits=("validation", "test"),
    ),
    builder(
        "paws_x_wiki",
        "1.0.0",
        "de",
        {"sentence1": Text(), "sentence2": Text(), "label": labels(["0", "1"])},
        [{"sentence1": "abe", "sentence2": "be abe", "label": 1}],
    ),
    builder(
        "wikiann",
        "1.0.0",
        "de",
        {"tokens": Sequence(Text()), "tags": Sequence(labels(panx.LABELS))},
        [{"tokens": ["abe", "be"], "tags": ["B-ORG", "O"]}],
    ),
    builder(
        "xtreme_pos",
        "1.0.0",
        "xtreme_pos_de",
        {"tokens": Sequence(Text()), "upos": Sequence(labels([*udpos.LABELS, "_"]))},
        [{"tokens": ["abebe", "abe", "be"], "upos": ["_", "ADP", "X"]}],
        splits=("train", "dev", "test"),
    ),
]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for small in BUILDERS:
        small(data_dir=folder).download_and_prepare()
    seqio.set_tfds_data_dir_override(folder)
    yield folder
    seqio.set_tfds_data_dir_override(None)


@pytest.fixture
def read(tfds_dir, vocabulary):
    """read(task, split) -> the only example, and the languages of its texts."""

    def read_task(task, split):
        ((batch, languages),) = examples(seqio.TaskRegistry.get(task), split)
        (example,) = batch
        texts = [vocabulary.decode(ids.tolist()) for ids in example.texts]
        return texts, languages[0], example.features

    return read_task


def test_pairs_of_tfds(read):
    texts, languages, features = read("tfds_xnli_deu", "validation")
    assert texts == ["abe de", "be de"] and languages == ("deu", "deu")
    assert xnli.LABELS[features["label"]] == "contradiction"
    texts, languages, features = read("tfds_pawsx_deu", "train")
    assert texts == ["abe", "be abe"] and languages == ("deu", "deu")
    assert pawsx.LABELS[features["label"]] == "1"


def test_words_of_tfds(read):
    (text,), languages, features = read("tfds_wikiann_deu", "test")
    (labels,) = features["label"]
    assert text == "abe be" and languages == ("deu",)
    assert [panx.LABELS[i] for i in labels[labels >= 0]] == ["B-ORG", "O"]
    (text,), _, features = read("tfds_udpos_deu", "validation")
    (labels,) = features["label"]
    assert text == "abe be" and [udpos.LABELS[i] for i in labels[labels >= 0]] == ["ADP", "X"]


def test_mixtures_are_of_what_is_prepared(tfds_dir):
    for name, split, size in (("xnli", "test", 15), ("wikiann", "train", 1), ("udpos", "test", 1)):
        assert len(split_tasks(seqio.MixtureRegistry.get(f"tfds_{name}"), split)) == size
    with pytest.raises(UserError, match=r"TFDS has not prepared wikiann/af in .*tfds\.load"):
        seqio.TaskRegistry.get("tfds_wikiann_afr").num_input_examples("train")
    assert set(labelled_tfds.MATCHED) == {"train", "validation", "test"}


def test_tfds_knows_every_data_set_by_its_name_and_version():
    for task in seqio.TaskRegistry.names():
        if task.startswith("tfds_"):
            name, version = seqio.TaskRegistry.get(task).source.tfds_dataset.name.split(":")
            dataset, _, config = name.partition("/")
            builder = tfds.builder_cls(dataset)
            assert str(builder.VERSION) == version
            assert not config or config in builder.builder_configs
