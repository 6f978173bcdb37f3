"""python -m xl_flax.vocab: trains a SentencePiece vocabulary on the text of a seqio mixture.

The Gin file sets VocabularyConfig: the mixture, the model file to write and its size (see
xl_flax/data/vocabulary.py for the rest), and Cache.task_modules. The text is what the tasks'
preprocessors make before `seqio.preprocessors.tokenize`. Beside the model stands a report,
NAME.report.json: fertility, unknown and single-character pieces per language. The same settings
and text give the same bytes.
"""

import argparse
import os
from collections.abc import Sequence

os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator is left to what runs on it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from xl_flax import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, add_flags)
    logging.set_verbosity(logging.ERROR)
    # Late: --help does not wait for TensorFlow.
    from xl_flax.data.remote_vocabulary import vocabulary_there
    from xl_flax.data.vocabulary import VocabularyConfig
    from xl_flax.data.vocabulary_command import report_path, train_vocabulary

    config = VocabularyConfig()
    with vocabulary_there(config.path, report_path(config.path)):
        train_vocabulary(config, overwrite=args.overwrite)


if __name__ == "__main__":
    cli.run(main)
