"""Which switches of a method contradict each other, and which are not stable together."""

from __future__ import annotations

import math

from fedsim.algorithms.method import AnyCompressor, Downlink, Method, ServerOptions, Uplink, feedback_coefficient
from fedsim.errors import ConfigError


def check(uplink: Uplink, downlink: Downlink, server: ServerOptions, probability: float) -> None:
    """Raise ConfigError for switches that contradict each other, with the reason and the way out."""
    if not uplink.memory:
        _needs(
            "memories",
            "uplink.memory = false; set it to true",
            ("uplink.rate", uplink.rate, "auto"),
            ("uplink.rate_levels", uplink.rate_levels, 0),
            ("uplink.initial", uplink.initial, "zero"),
            ("uplink.correction", uplink.correction, 1.0),
            ("uplink.synchronise", uplink.synchronise, 0.0),
            ("server.memory", server.memory, "pp2"),
            ("server.paper_compat", server.paper_compat, False),
        )
    if downlink.memory == "none":
        _needs("a downlink memory", "downlink.memory = 'none'; say 'model'", ("downlink.rate", downlink.rate, "auto"))
    if downlink.memory != "model":
        _needs(
            "clients that hold models of their own",
            f"downlink.memory = {downlink.memory!r}; say 'model'",
            ("downlink.each", downlink.each, False),
        )
    if downlink.memory != "none" and downlink.feedback:
        raise ConfigError(
            f"downlink.feedback = {downlink.feedback!r} recovers what compression leaves out, and so does "
            f"downlink.memory = {downlink.memory!r}; drop one of them"
        )
    if server.memory == "pp1" and (server.normalise == "registered" or uplink.synchronise):
        raise ConfigError(
            "server.memory = 'pp1' has no mean of all memories, which server.normalise = 'registered' and "
            "uplink.synchronise need; use memory = 'pp2'"
        )
    if uplink.initial == "gradient" and probability < 1:
        raise ConfigError(
            "uplink.initial = 'gradient' needs every client in the first round, but participation is partial; "
            "use initial = 'zero' or participation.scheme = 'full'"
        )
    if server.paper_compat and server.memory == "pp1":
        raise ConfigError(
            "server.paper_compat changes the pp2 update only, but server.memory = 'pp1'; drop one of them"
        )


def _needs(what: str, way_out: str, *switches: tuple[str, object, object]) -> None:
    """Refuse switches, (key, value, what it is unset), that mean nothing without ``what``."""
    for key, value, unset in switches:
        if value != unset:
            raise ConfigError(f"{key} = {value!r} needs {what}, but {way_out} or drop {key}")


def check_channels(method: Method, step: float, probability: float) -> None:
    """Refuse compressors, memories and error feedbacks that are not stable together, with the reason and the way out.

    step: of the server; probability: of a client to take part.
    """
    up, d = method.uplink, method.d
    omega = up.compressor.omega(d)
    if up.correction != 1.0 and not math.isfinite(omega):
        raise ConfigError(
            f"uplink.correction = {up.correction!r} needs an unbiased compressor, but {_named(up.compressor)} is "
            "biased; use rand-k or quantize, or correction = 1"
        )
    check_error(
        "uplink", up.compressor, feedback_coefficient(up.feedback, step), method.alpha * (up.correction == 1), d
    )
    check_error(
        "downlink", method.downlink.compressor, feedback_coefficient(method.downlink.feedback, step), method.beta, d
    )
    if up.correction != 1.0:
        if method.alpha != 1.0:
            raise ConfigError(
                f"uplink.correction = {up.correction!r} needs uplink.rate = 1, got {up.rate!r}; drop rate"
            )
        a = method.correction
        if (1 - a) ** 2 + a**2 * omega >= 1 and not (a == 0 and up.synchronise):
            raise ConfigError(
                f"uplink.correction = {up.correction!r} lets errors stay or grow with omega = {omega:.3g} at d = {d}; "
                "use 'auto', or 0 with uplink.synchronise = 'auto'"
            )
    if not math.isfinite(omega) and up.memory and probability < 1 and method.server.normalise == "expected":
        raise ConfigError(
            f"{_named(up.compressor)} is biased, so that server.normalise = 'expected' would overshoot under partial "
            "participation; use normalise = 'registered'"
        )


ROUNDING = 0.99
"""From this delta on what a biased compressor leaves out is rounding, as of 16-bit numbers, and may be lost."""


def check_error(name: str, compressor: AnyCompressor, feedback: float, rate: float, d: int) -> None:
    """Refuse what a compressor leaves out and nobody recovers, or what would grow.

    An error obeys E||e'||^2 <= omega ||x + c e||^2, or (1 - delta) ||x + c e||^2 if it is biased, so it stays bounded
    only where c^2 times that factor is below 1. A memory's distance to a row that rests shrinks in one step by
    (1 - rate)^2 + rate^2 omega; a contraction always shrinks it. feedback: c; rate: of the memory, 0 without one.
    """
    omega, delta = compressor.omega(d), compressor.delta(d)
    biased = not math.isfinite(omega)
    if biased and delta < ROUNDING and not feedback and not rate:
        raise ConfigError(
            f"{name}.compressor: {_named(compressor)} is biased, and what it leaves out would be lost; "
            f"use {name}.feedback = 1 (error feedback) or a memory (EF21)"
        )
    if feedback and feedback * feedback * (1 - delta if delta else omega) >= 1:
        raise ConfigError(
            f"{name}.feedback is {feedback:.3g} with a compressor of omega = {omega:.3g} at d = {d}: "
            f"the error would grow (c^2 omega >= 1); use feedback = 'step' with a smaller step, or a finer compressor"
        )
    if not biased and (1 - rate) ** 2 + rate**2 * omega >= 1 and rate:
        raise ConfigError(
            f"{name}.rate is {rate:.3g} with a compressor of omega = {omega:.3g} at d = {d}: the memory would grow "
            f"(rate >= 2 / (1 + omega)); use rate = 'auto'"
        )


def _named(compressor: AnyCompressor) -> str:
    return repr(compressor.__struct_config__.tag)
