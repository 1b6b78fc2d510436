"""What the owner of a machine lets an experiment do that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsim.data import Clusters, FashionMNIST, LibSVM, Own
from fedsim.data.files import expanded
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.plugins import code_named


@dataclass(frozen=True, slots=True)
class Trust:
    """code: whether it may name Python functions to be called. data: the folder of all that it may read; None: any."""

    code: bool = False
    data: Path | None = None

    def check(self, experiment: Experiment) -> None:
        """Raise ConfigError for what is not allowed, before anything is imported or read."""
        if not self.code and (named := ", ".join(code_named(experiment))):
            raise ConfigError(
                f"{named}: names Python code, and this machine runs none that comes with an experiment; to allow it "
                "start `fedsim worker --allow-code`, or a node without a worker with allow-code=true in its "
                "--node-config"
            )
        for key, path in _paths(experiment):
            if self.data is not None and not expanded(path).resolve().is_relative_to(self.data.resolve()):
                raise ConfigError(f"{key} = {path!r}: this machine reads data below {self.data} only (--data)")


NO_CODE = Trust()


def _paths(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The keys that name files, and what they name."""
    source, scheme = experiment.data, experiment.partition
    if isinstance(source, LibSVM | FashionMNIST):
        yield "data.path", source.path
    if isinstance(source, LibSVM) and source.test_path:
        yield "data.test_path", source.test_path
    if isinstance(source, Own):
        yield from (("data.paths", path) for path in source.paths if path)
        if source.test:
            yield "data.test", source.test
    if isinstance(scheme, Clusters) and scheme.file:
        yield "partition.file", scheme.file
