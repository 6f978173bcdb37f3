"""Translations through TFDS, on small builders that are generated here under the real names."""

import importlib

import pytest
import seqio
import tensorflow_datasets as tfds

from tasks import opus
from xl_flax.errors import UserError

PAIRS = [{"de": f"satz {i}", "en": f"sentence {i}"} for i in range(2100)]
TALKS = [
    {"de": "eins", "en": "one", "fr": "un"},
    {"de": "zwei", "fr": "deux"},
    {"en": "three", "de": "drei"},
]

with tfds.core.registered.skip_registration():

    class Opus(tfds.core.GeneratorBasedBuilder):
        """As TFDS's own: same name, version, configuration and features."""

        # TFDS looks for the source of classes in packages with a library that it does not require.
        __module__ = "opus_builder"

        VERSION = tfds.core.Version("0.1.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="medical"),)

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(PAIRS)

    class TedMultiTranslate(tfds.core.GeneratorBasedBuilder):
        """As TFDS's own."""

        __module__ = "ted_builder"

        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            features = {
                "translations": tfds.features.TranslationVariableLanguages(("de", "en", "fr")),
                "talk_name": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in opus.TED_SPLITS}

        def _generate_examples(self):
            for i, talk in enumerate(TALKS):
                yield i, {"translations": talk, "talk_name": f"talk {i}"}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    Opus(config="medical", data_dir=folder).download_and_prepare()
    TedMultiTranslate(data_dir=folder).download_and_prepare()
    return folder


def decoded(task: seqio.Task, split: str, vocabulary) -> set[tuple[str, ...]]:
    dataset = task.get_dataset(None, split, shuffle=False)
    return {tuple(map(vocabulary.decode, example["tokens"].to_list())) for example in dataset}


def test_pairs_of_opus_become_tokens(tfds_dir, vocabulary):
    source = opus.source(opus.OPUS.format("medical"), tfds_dir)
    assert [source.num_input_examples(split) for split in opus.SPLITS] == [100, 1000, 1000]
    task = opus.add_translations("test_opus_medical", source, ("en", "de"))
    found = {split: decoded(task, split, vocabulary) for split in opus.SPLITS}
    assert set.union(*found.values()) == {(pair["en"], pair["de"]) for pair in PAIRS}
    assert sum(map(len, found.values())) == len(PAIRS)
    example = next(iter(task.get_dataset(None, "test", shuffle=False)))
    assert example["language"].numpy().tolist() == [b"eng", b"deu"]


def test_talks_in_all_of_the_languages_asked_for(tfds_dir, vocabulary):
    source = opus.source(opus.TED, tfds_dir)
    pairs = opus.add_translations("test_ted_pairs", source, ("de", "en"))
    assert decoded(pairs, "train", vocabulary) == {("eins", "one"), ("drei", "three")}
    multiway = opus.add_translations("test_ted_multiway", source, ("fr", "de", "en"))
    assert decoded(multiway, "test", vocabulary) == {("un", "eins", "one")}


@pytest.mark.parametrize("name", ["opus_law_deu_eng", "paracrawl_deu_eng", "ted_deu_eng"])
def test_a_data_set_that_is_not_prepared_says_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = seqio.TaskRegistry.get(name)
    for read in (task.source.get_dataset, task.num_input_examples):
        with pytest.raises(UserError, match=r"TFDS has not prepared .*TFDS_DATA_DIR.*tfds\.load"):
            read("train")


def test_tfds_knows_every_name():
    def known(name: str) -> dict[str, str]:
        builder = tfds.builder_cls(name)
        return {config.name: str(config.version) for config in builder.BUILDER_CONFIGS}

    for template, codes in (
        (opus.OPUS, opus.DOMAINS),
        (opus.PARACRAWL, opus.PARACRAWL_CODES.split()),
    ):
        for code in codes:
            name, version = template.format(code).split(":")
            name, config = name.split("/")
            assert known(name)[config] == version
    name, version = opus.TED.split(":")
    assert str(tfds.builder_cls(name).VERSION) == version
    languages = importlib.import_module(tfds.builder_cls(name).__module__)._LANGUAGES
    assert set(opus.TED_CODES.split()) <= set(languages)
