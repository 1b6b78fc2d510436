"""From the server to the clients: what is compressed, and what both ends hold afterwards.

    paper     here      meaning
    w_k       model     the server's model
    what_k    held      the model at which clients compute; with memory "none" or "update" the server's own
    H         memory    what both ends keep of earlier messages, float[d]
    beta      beta      memory rate, 1 / (2 (omega_dwn + 1)) by default; 1 for a biased compressor
    Omega     sent      what the message decodes to

    memory     message                        held afterwards                 H afterwards
    none       Omega = C(ghat)                what - gamma Omega              -
    update     Omega = C(ghat - H)            what - gamma (H + Omega)        H + beta Omega
    model      Omega = C(w_{k+1} - H)         H + Omega                       H + beta Omega

"none" is Artemis; "update" with beta = 1 and a contraction is the downlink of EF21-BC; "model" is MCM, and with
beta = 1 and a contraction EF21-P, where H = what. With "model" the server's own model is w_{k+1} = w_k - gamma ghat:
compression does not degrade it. Rand-MCM gives each client a message and an H of its own.

Source: Philippenko and Dieuleveut, "Preserved central model for faster bidirectional compression in distributed
settings" (MCM), NeurIPS 2021, arXiv 2102.12528; Fatkhullin et al., "EF21 with bells and whistles", arXiv 2110.03294
(EF21-BC); Gruntkowska, Tyurin, Richtarik, "EF21-P and friends", ICML 2023, arXiv 2209.15218.
"""

from __future__ import annotations

from torch import Tensor

from fedsim.algorithms.method import Method
from fedsim.compression import Payload
from fedsim.randomness import Stream


def hear(
    method: Method, held: Tensor, memory: Tensor | None, sent: Tensor, step: float
) -> tuple[Tensor, Tensor | None]:
    """What a client holds after a message, and so the server's copy of it: (model, memory), float[..., d] each."""
    if memory is None:
        return apply(held, sent, step), None
    decoded, after = memory + sent, memory + method.beta * sent
    return (decoded if method.downlink.memory == "model" else apply(held, decoded, step)), after


def apply(model: Tensor, update: Tensor, step: float) -> Tensor:
    """w_{k+1} = w_k - gamma Omega: the one place where a model moves along an update."""
    return model - step * update


def address(
    method: Method, model: Tensor, memories: Tensor, clients: Tensor, noise: Stream
) -> tuple[Payload, Tensor, Tensor]:
    """Rand-MCM: to each client its own message. model: float[d]; memories: float[n, d], H_i; clients: int64[n].

    Returns the messages, the models at which the clients compute, float[n, d], and their memories afterwards.
    """
    payload = method.down.compress(model - memories, noise, clients)
    sent = method.down.decompress(payload, model.dtype)
    return payload, memories + sent, memories + method.beta * sent
