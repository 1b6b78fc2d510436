"""``fedsim data``: what the clients of an experiment hold."""

from __future__ import annotations

from fedsim.cli.options import Assignments, ExperimentFile


def data(experiment: ExperimentFile = None, assignments: Assignments = None) -> None:
    """Show the data set and how it is split: samples and labels of every client."""
    from rich.console import Console
    from rich.table import Table

    from fedsim.data import deal, describe
    from fedsim.experiment import load

    parsed = load(experiment, assignments or ())
    federation = deal(parsed.data, parsed.partition, parsed.seed)
    sizes, classes = federation.sizes, federation.classes
    print(f"{federation.name}: {len(federation.targets)} samples of shape {tuple(federation.features.shape[1:])}")
    print(f"{federation.clients} clients, {int(sizes.min())} to {int(sizes.max())} samples each")
    if federation.test is not None:
        print(f"{len(federation.test.targets)} test samples")
    table = Table("client", "samples", *([] if classes is None else map(str, range(classes))), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for client, size, labels in describe(federation):
        table.add_row(str(client), str(size), *(str(count) if count else "." for count in labels or ()))
    Console().print(table)
