"""Places where runs are carried out: processes of this machine, a Dask cluster, or Slurm."""

from hatrack.experiments.executors.base import Executor
from hatrack.experiments.executors.dask import DaskExecutor
from hatrack.experiments.executors.local import LocalExecutor
from hatrack.experiments.executors.slurm import SlurmExecutor

__all__ = ["DaskExecutor", "Executor", "LocalExecutor", "SlurmExecutor"]
