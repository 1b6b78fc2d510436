"""A long-lived process that computes for the clients of a node: data and setups stay loaded, state lies in a folder.

    Flower's process of one message          worker (``fedsim worker``)
    relay.play(address, experiment, frames)  -- Unix socket, gRPC -->  one Host, one errand at a time
    imports no torch                         <------- Answer -------

It may be killed at any instant and started again: what its clients must still know is on disk before a reply leaves.
"""

from fedsim.errors import WorkerError

try:
    import google.protobuf.message  # noqa: F401
    import grpc  # noqa: F401
except ModuleNotFoundError as error:
    raise WorkerError(
        f"a worker and its callers need grpcio and protobuf, but there is no module {error.name}; "
        "pip install 'fedsim[deploy]'"
    ) from None
