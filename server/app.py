"""The Flower ServerApp: it runs the round loop of fedsim with Flower's grid as its post.

run config   experiment   TOML text; empty: the default experiment
             folder       the run folder, on this machine; one that holds this experiment's run goes on from there
             engine       for the manifest
             directory    where the relative paths of both begin; empty: where this process runs
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.ends.host import read
from fedsim.ends.serve import serve
from server.post import FlowerPost

log = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or resume, an experiment. Raises FedsimError, whose line Flower shows as the reason of the failure."""
    config = {key: str(context.run_config.get(key, "")) for key in ("experiment", "folder", "engine", "directory")}
    if config["directory"]:
        os.chdir(config["directory"])
    experiment = read(config["experiment"])
    folder = Path(config["folder"] or f"runs/{experiment.algorithm}-{context.run_id}").absolute()
    log.info("fedsim: run folder %s", folder)
    result = serve(experiment, folder, FlowerPost(grid), engine=config["engine"] or "flower")
    last = result.metrics[-1]
    loss = "".join(f"{name} {last[name]:.6g} " for name in ("loss", "test_loss") if name in last)
    log.info("fedsim: %safter %d rounds, model %s", loss, last["round"], result.digest)
