"""Wikipedia through TFDS, on a small builder that is generated here under the real name."""

import pytest
import seqio
import tensorflow_datasets as tfds

from tasks import mixtures, text, wikipedia
from xl_flax.errors import UserError

ARTICLES = [{"title": f"Titel {i}", "text": f"Artikel {i}\n\nhat zwei Teile"} for i in range(200)]

with tfds.core.registered.skip_registration():

    class Wikipedia(tfds.core.GeneratorBasedBuilder):
        """As TFDS's own: same name, version, configurations and features."""

        # TFDS looks for the source of classes in packages with a library that it does not require.
        __module__ = "wikipedia_builder"

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="20230601.de"),)

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"title": tfds.features.Text(), "text": tfds.features.Text()}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(ARTICLES)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    Wikipedia(config="20230601.de", data_dir=folder).download_and_prepare()
    return folder


def test_articles_become_tokens(tfds_dir, vocabulary):
    source = wikipedia.source("de", tfds_dir)
    assert [source.num_input_examples(s) for s in wikipedia.SPLITS] == [196, 2, 2]
    task = text.add_text_task("test_wikipedia_de", "deu", source)
    found = {}
    for split in wikipedia.SPLITS:
        examples = list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())
        assert all(e.keys() == {"tokens", "language"} for e in examples)
        found[split] = {tuple(e["tokens"]) for e in examples}
    assert set.union(*found.values()) == {tuple(vocabulary.encode(a["text"])) for a in ARTICLES}
    assert [len(found[s]) for s in wikipedia.SPLITS] == [196, 2, 2]
    shards = source.list_shards("train")
    assert shards and all(str(shard).startswith(tfds_dir) for shard in shards)


def test_an_unprepared_wikipedia_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = seqio.TaskRegistry.get("wikipedia_de")
    for read in (task.source.get_dataset, task.num_input_examples):
        with pytest.raises(UserError, match=r"wikipedia/20230601\.de.*TFDS_DATA_DIR.*tfds\.load"):
            read("train")


def test_tfds_knows_every_language_of_the_table():
    known = tfds.builder_cls("wikipedia").builder_configs
    assert [c for c in wikipedia.LANGUAGES if f"{wikipedia.DUMP}.{c}" not in known] == []
    assert wikipedia.VERSION in map(str, [tfds.builder_cls("wikipedia").VERSION])


def test_languages_join_as_in_mmbert():
    stages = [mixtures.FIRST.split(), mixtures.SECOND.split(), list(wikipedia.LANGUAGES)]
    for stage, count in zip(stages, (60, 85, 93), strict=True):
        assert len(stage) == len(set(stage)) == count
    assert set(stages[0]) < set(stages[1]) < set(stages[2])
