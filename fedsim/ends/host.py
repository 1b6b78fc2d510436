"""The clients of one machine, for whatever runs they are asked to serve; others bring the frames and take them.

A machine's only inputs are the text of an experiment and frames, so one that serves several runs, or several clients of
one, needs no configuration. The last experiment stays prepared (its data loaded and split) from call to call.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec

from fedsim.ends.answer import Answer
from fedsim.ends.client import ClientEnd
from fedsim.ends.part import whole
from fedsim.ends.store import Keep
from fedsim.ends.trust import NO_CODE, Trust
from fedsim.errors import FedsimError, WireError
from fedsim.experiment import Experiment, default_table, from_table, parse_toml
from fedsim.network import Untimed
from fedsim.simulation.setup import Setup, prepare
from fedsim.wire import coding, decode_frame

log = logging.getLogger("fedsim")


class Host:
    """Clients, each with its own end. keep: where that of a client of a run (its 8-byte name) is kept, if anywhere."""

    def __init__(self, keep: Callable[[bytes, int], Keep | None], device: str = "", trust: Trust = NO_CODE) -> None:
        """device: to compute on, instead of the experiment's run.device; empty: as the experiment says."""
        self.keep, self.device, self.trust = keep, device, trust
        self.text = ""
        self.ends: dict[int, ClientEnd] = {}

    def play(self, experiment: str, frames: Sequence[bytes]) -> Answer:
        """Let every client named by a frame hear its frames, in order, and answer.

        experiment: TOML text. What befalls one client is its trouble, and no other's. Raises ConfigError or DataError
        for an experiment that cannot be served, WireError for bytes that are not a frame.
        """
        setup = prepared(experiment, self.device, self.trust)
        if experiment != self.text:
            self.text, self.ends = experiment, {}
        heard: dict[int, list[bytes]] = {}
        for data in frames:
            heard.setdefault(decode_frame(data, coding.longest(whole(setup))).client, []).append(data)
        replies, troubles = [], []
        for client, calls in heard.items():
            try:
                end = self._end(setup, client)
                for call in calls:
                    end.hear(call)
                replies.append((client, tuple(end.answer())))
            except FedsimError as error:
                troubles.append((client, str(error)))
            except OSError as error:
                # What leaves must be on disk first; the next call will find the client as it was.
                troubles.append((client, f"cannot keep its state ({error.strerror or error}); mend its disk"))
                self.ends.pop(client, None)
            except Exception as error:  # of one client's data or own part: the others go on
                traceback.print_exception(error)
                troubles.append((client, f"{type(error).__name__}: {' '.join(str(error).split())}; see the log there"))
                self.ends.pop(client, None)
        for client, why in troubles:
            log.warning("client %d has no reply: %s", client, why)
        return Answer(tuple(replies), tuple(troubles))

    def _end(self, setup: Setup, client: int) -> ClientEnd:
        if not 0 <= client < setup.clients:
            raise WireError(f"a frame for client {client}, but the experiment has {setup.clients}")
        if client not in self.ends:
            self.ends[client] = ClientEnd(setup, client, self.keep(setup.run, client))
        return self.ends[client]


@lru_cache(maxsize=1)
def prepared(text: str, device: str = "", trust: Trust = NO_CODE) -> Setup:
    """What the deployed ends work with: clients by themselves, one after another; the run has the experiment's name.

    Raises ConfigError, also for what is not trusted, or DataError.
    """
    experiment = read(text)
    trust.check(experiment)
    # Time is simulated where the rounds are, if at all; a trace of clients' lines is no file of this machine.
    setup = alone(msgspec.structs.replace(experiment, network=Untimed()), device)
    return replace(setup, experiment=experiment, run=experiment.identifier())


def alone(experiment: Experiment, device: str = "") -> Setup:
    """As ``prepared``."""
    own = msgspec.structs.replace(
        experiment.run, executor="sequential", chunk=0, workers=0, device=device or experiment.run.device
    )
    setup = prepare(msgspec.structs.replace(experiment, run=own))
    return replace(setup, experiment=experiment, run=experiment.identifier())


def read(text: str) -> Experiment:
    """The experiment of a TOML text; the default one of an empty text. Raises ConfigError."""
    given = parse_toml(text.encode("utf-8", "replace"), "the experiment is not valid TOML")
    return from_table(given if text.strip() else default_table())
