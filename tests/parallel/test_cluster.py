"""Where a process stands in a run is read from what started it."""

import pytest

from xl_flax.errors import UserError
from xl_flax.parallel import cluster
from xl_flax.parallel.cluster import Place, find

NOWHERE = Place(None, None, None)
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-08],gpu12",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*SLURM, *MPI, *URI, cluster.ADDRESS, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        (SLURM, NOWHERE, Place("gpu07:61441", 16, 9)),
        (MPI | URI, NOWHERE, Place("10.96.0.1:62624", 4, 3)),
        (MPI, Place("node1:1234", None, None), Place("node1:1234", 4, 3)),  # Open MPI 5
        (MPI | {cluster.ADDRESS: "node1:1234"}, NOWHERE, Place("node1:1234", 4, 3)),
        (SLURM, Place("other:1234", None, None), Place("other:1234", 16, 9)),
        (SLURM | MPI, Place("other:1234", 2, 1), Place("other:1234", 2, 1)),  # flags win
    ],
)
def test_slurm_and_mpirun_are_recognised(monkeypatch, variables, given, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find(given, 1.0) == expected


@pytest.fixture
def on_a_tpu(monkeypatch):
    """A machine with TPUs, as JAX sees it."""
    pods = pytest.importorskip("jax._src.clusters.cloud_tpu_cluster")
    monkeypatch.setattr(pods, "running_in_cloud_tpu_vm", True)
    return pods


def test_slices_on_gke_are_recognised(monkeypatch, on_a_tpu):
    own = {
        "TPU_WORKER_HOSTNAMES": "localhost,job-1",
        "TPU_WORKER_ID": "1",
        "TPU_SKIP_MDS_QUERY": "1",
    }
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    slices["MEGASCALE_COORDINATOR_ADDRESS"] = "localhost:8080"
    for name, value in (own | slices).items():
        monkeypatch.setenv(name, value)
    assert find(NOWHERE, 1.0) == Place("localhost:8482", 4, 3)


def test_tpu_vms_are_recognised_by_their_metadata(monkeypatch, on_a_tpu):
    values = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a:0:127.0.0.1,b:1:10.0.0.3",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
    }
    monkeypatch.setattr(on_a_tpu, "get_metadata", lambda key: (values[key], 200))
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert find(NOWHERE, 1.0) == Place("127.0.0.1:8482", 2, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, r"no TPU pod, GKE job, Slurm step or mpirun is recognised here; give --coordinator"),
        (MPI, r"nothing names process 0 here: give --coordinator or JAX_COORDINATOR_ADDRESS"),
        (SLURM | {"SLURM_NTASKS": "x"}, r"gives no place in a run \(invalid literal.*give --coord"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "x"}, r"OMPI_COMM_WORLD_SIZE = 'x'.*whole number"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        find(NOWHERE, 1.0)
