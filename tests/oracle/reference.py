"""The whole algorithm in numpy, from the papers' formulas and the TOML keys, one client after another.

    k, t     round, from 0 (the paper's w_k, before the step of round k)
    S        cohort                     v_i      weight of client i, sums to 1
    g_i      direction of client i      h_i      memory of client i,  h = sum_i v_i h_i
    D_i      C_up(g_i - h_i + c e_i)    e_i, e   what compression left out at client i, at the server
    Omega    C_dwn(ghat + c e)          w_{k+1} = w_k - gamma_k Omega
    k_i      g_i of the last time (DASHA, MARINA)         H, H_i   downlink memory, one or one a client
    what     the model at which clients compute: w_k, or with memory "model" H + C_dwn(w_k - H)
    P = K K'                            inverse of the damped second moment of the pooled features, where they whiten:
                                        messages go up as g K, steps ghat P come down as (ghat P) K^-T

Nothing of fedsim is imported; random numbers come from an own Philox by the addresses that fedsim documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.oracle import arithmetic

Row = NDArray[Any]
Table = dict[str, Any]

PARTICIPATION, BATCH, UPLINK, DOWNLINK, ORDER, SYNCHRONISE = 1, 2, 3, 4, 9, 11
SERVER = 2**32 - 1
HEADER_BYTES = 40


# ---------------------------------------------------------------------------------------------------- random numbers


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., SC 2011, section 3.3). counter: uint32[n, 4] -> uint32[n, 4]."""
    c0, c1, c2, c3 = counter.T.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        left = c0 * np.uint64(0xD2511F53)  # products of two 32-bit words: below 2^64
        right = c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (right >> np.uint64(32)) ^ c1 ^ np.uint64(k0), right & np.uint64(0xFFFFFFFF)
        c2, c3 = (left >> np.uint64(32)) ^ c3 ^ np.uint64(k1), left & np.uint64(0xFFFFFFFF)
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, purpose: int, round: int, client: int, width: int, index: int = 0) -> NDArray[np.uint32]:
    """Word j is output j % 4 of counter (j // 4, client, round, purpose + 256 index) under the key seed."""
    blocks = -(-width // 4)
    counter = np.array([[block, client, round, purpose + 256 * index] for block in range(blocks)], np.uint32)
    return philox(counter.reshape(blocks, 4), (seed % 2**32, seed >> 32)).reshape(-1)[:width]


def uniforms(numbers: NDArray[np.uint32], dtype: Any) -> Row:
    """float64: all 32 bits; float32: the upper 24."""
    if dtype == np.float64:
        return numbers / 2**32
    return (numbers // 2**8).astype(np.float32) / np.float32(2**24)


# ------------------------------------------------------------------------------------------------------- compression


def up_to_float32(number: float) -> np.float32:
    """The smallest float32 that is not below ``number``."""
    nearest = np.float32(number)
    return nearest if float(nearest) >= number else np.nextafter(nearest, np.float32(np.inf))


@dataclass
class Message:
    """What crosses: D (as both ends reconstruct it) and the length of its encoding in bytes."""

    sent: Row
    bytes: int
    levels: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


class Operator(Protocol):
    """A compressor of which this file has no transcription of its own; other tests hold it to its paper."""

    def compress(self, row: Row, address: tuple[int, int, int, int]) -> Message: ...

    def omega(self, d: int) -> float: ...

    def formula_bits(self, d: int) -> tuple[float, float]: ...


def compress(channel: Table, row: Row, address: tuple[int, int, int, int]) -> Message:
    """C(row), by the keys of an [uplink] or [downlink] table. address: seed, purpose, round, client."""
    if operator := channel.get("operator"):
        message: Message = operator.compress(row, address)
        return message
    if channel["compressor"] == "identity":
        wire = row.astype(channel["values"])
        return Message(wire.astype(row.dtype), wire.nbytes)
    draws = uniforms(words(*address, len(row)), row.dtype)
    return quantize(row, channel["levels"], channel["norm"], channel["bucket"], draws)


def quantize(row: Row, s: int, norm: str, bucket: int, draws: Row) -> Message:
    """C_s(x)_j = ||x|| sign(x_j) psi_j, psi_j = (l + 1)/s with probability s|x_j|/||x|| - l, else l/s."""
    d, dtype = len(row), row.dtype.type
    size = min(bucket, d) or d
    sent, levels, norms = np.zeros_like(row), np.zeros(d, np.int64), []
    for start in range(0, d, size):
        part = slice(start, start + size)
        wide = [abs(float(x)) for x in row[part]]
        length = max(wide) if norm == "linf" else max(math.sqrt(math.fsum(x * x for x in wide)), max(wide))
        norms.append(float(up_to_float32(length)))
        if norms[-1] == 0:
            continue
        scaled = np.abs(row[part]) / dtype(norms[-1]) * dtype(s)
        level = np.floor(scaled)
        levels[part] = np.sign(row[part]) * (level + (draws[part] < scaled - level))
        sent[part] = dtype(norms[-1]) * (levels[part].astype(dtype) / dtype(s))
    return Message(sent, message_bytes(levels.tolist(), norms, s, size), levels.tolist(), norms)


def message_bytes(levels: list[int], norms: list[float], s: int, bucket: int) -> int:
    """Length of the encoding, from the description of the format; these rows are too short for a table of counts."""
    return 4 * len(norms) + (arithmetic.plan(levels, s, bucket)[2] if any(norms) else 0)


def omega(channel: Table, d: int) -> float:
    if operator := channel.get("operator"):
        return float(operator.omega(d))
    if channel["compressor"] == "identity":
        return 0.0
    s, b = int(channel["levels"]), min(int(channel["bucket"]), d) or d
    if channel["norm"] == "l2":
        return min(b / s**2, math.sqrt(b) / s)
    return min(b / (2 * s) ** 2, (math.sqrt(b) - 1) / 2 if s == 1 else math.sqrt(b) / s)


def formula_bits(channel: Table, d: int) -> tuple[float, float]:
    """(bits a message, bits a round): 32 d, or the published code's count (science notes, section 1.6)."""
    if operator := channel.get("operator"):
        found: tuple[float, float] = operator.formula_bits(d)
        return found
    if channel["compressor"] == "identity":
        return 32.0 * d, 0.0
    s, size, total = channel["levels"], min(channel["bucket"], d) or d, 0.0
    for start in range(0, d, size):
        b = min(size, d - start)
        total += (3 + 3 / 2) * math.log(2 * (s**2 + b) / (s * (s + math.sqrt(b)))) * s * (s + math.sqrt(b))
    return total, 32.0


# --------------------------------------------------------------------------------------------------------- the clients


@dataclass
class World:
    """kind: "least-squares" (y a number) or "logistic" (y = -1 or +1). shards: (X[n_i, d], y[n_i]) of each client."""

    kind: str
    shards: list[tuple[Row, Row]]
    l2: float = 0.0

    @property
    def d(self) -> int:
        return int(self.shards[0][0].shape[1])

    def gradient(self, w: Row, X: Row, y: Row) -> Row:
        scores = X @ w
        slopes = 2 * (scores - y) if self.kind == "least-squares" else -y / (1 + np.exp(y * scores))
        return np.asarray(X.T @ slopes / len(y) + self.l2 * w)

    def loss(self, w: Row, X: Row, y: Row) -> float:
        scores = X @ w
        losses = (scores - y) ** 2 if self.kind == "least-squares" else np.logaddexp(0, -y * scores)
        return float(np.mean(losses) + self.l2 / 2 * w @ w)

    def smoothness(self, norm: str) -> float:
        constants = []
        for X, y in self.shards:
            gram = np.linalg.norm(X.T @ X, 2 if norm == "spectral" else "fro")
            constants.append((2 if self.kind == "least-squares" else 0.25) * gram / len(y) + self.l2)
        return float(np.mean(constants))


def batch(seed: int, size: int, X: Row, y: Row, client: int, round: int, step: int) -> tuple[Row, Row]:
    """All samples, or the ``size`` with the smallest words; a tie goes to the smaller sample number."""
    if size == 0 or size >= len(y):
        return X, y
    keys = words(seed, BATCH, round, client, len(y), step)
    chosen = sorted(sorted(range(len(y)), key=lambda j: (int(keys[j]), j))[:size])
    return X[chosen], y[chosen]


def places(order: str, seed: int, client: int, n: int, epoch: int, clients: int) -> list[int]:
    """The samples of one pass, in order (Mishchenko et al. 2020; Yun et al. 2022 for the synchronised one)."""
    match order:
        case "incremental":
            return list(range(n))
        case "with-replacement":
            return [int(word) * n // 2**32 for word in words(seed, ORDER, epoch, client, n)]
    keys = words(seed, ORDER, 0 if order == "shuffle-once" else epoch, SERVER if order == "synchronised" else client, n)
    shuffled = sorted(range(n), key=lambda j: (int(keys[j]), j))
    first = client * n // clients if order == "synchronised" else 0
    return shuffled[first:] + shuffled[:first]


@dataclass
class Solver:
    """What one client's local solver remembers: steps taken, measured sharpnesses, their newest factor."""

    steps: int = 0
    history: list[float] = field(default_factory=list)
    factor: float = 1.0


def sharpness(rate: Table, world: World, w: Row, X: Row, y: Row) -> float:
    """Algorithm 2 of SALR with the batch gradient normalised: n1 steps down, n2 steps up, S = difference of losses."""
    low, high = w.copy(), w.copy()
    for _ in range(rate["descent"]):
        g = world.gradient(low, X, y)
        low = low - rate["probe"] * g / np.linalg.norm(g)
    for _ in range(rate["ascent"]):
        g = world.gradient(high, X, y)
        high = high + rate["probe"] * g / np.linalg.norm(g)
    return max(0.0, world.loss(high, X, y) - world.loss(low, X, y))


def relative_sharpness(rate: Table, measured: float, history: list[float]) -> float:
    """S / median of all S so far, within the cap; ``history`` grows."""
    history.append(measured)
    median = float(np.median(history))
    return min(max(measured / median if median > 0 else 1.0, rate["floor"]), rate["cap"])


def direction(
    table: Table, world: World, w: Row, client: int, round: int, eta: float, solver: Solver, P: Row | None
) -> Row:
    """H steps: sum eta_h g_h / sum eta_h, or the difference w_0 - w_H = sum eta_h g_h; P preconditions what moves w."""
    local, rate, seed, (X, y) = table["local"], table["rate"], table["seed"], world.shards[client]
    n = len(y)
    b = min(local["batch"], n) or n
    m = -(-n // b)
    model, total, lengths = w.copy(), np.zeros_like(w), 0.0
    for step in range(local["epochs"] * m or local["steps"]):
        if local["order"] == "fresh":
            Xb, yb = batch(seed, local["batch"], X, y, client, round, step)
            g = world.gradient(model, Xb, yb)
        else:
            epoch, j = divmod(solver.steps, m)
            some = places(local["order"], seed, client, n, epoch, len(world.shards))[j * b : (j + 1) * b]
            Xb, yb = X[some], y[some]
            # every sample of a pass weighs m / n, also in a short last batch
            g = (world.gradient(model, Xb, yb) - world.l2 * model) * len(some) * m / n + world.l2 * model
        length = eta
        if rate["rule"] == "harmonic":
            length = min(eta, 1 / (rate["mu"] * (1 + rate["factor"] * max(0, solver.steps - rate["hold"]))))
        if rate["rule"] == "salr" and rate["level"] == "client":
            if not solver.history or solver.steps % rate["period"] == 0:
                solver.factor = relative_sharpness(rate, sharpness(rate, world, model, Xb, yb), solver.history)
            length = eta * solver.factor
        model = model - length * (g if P is None else P @ g)
        total, lengths, solver.steps = total + length * g, lengths + length, solver.steps + 1
    return total / lengths if local["send"] == "direction" else total


@dataclass
class Whitening:
    """The pooled second moment and its maps: K from the Cholesky factor of the damped moment, P = K K'."""

    moment: Row
    damping: float
    made: int
    count: int

    def __post_init__(self) -> None:
        m = len(self.moment)
        damped = self.moment + self.damping * np.trace(self.moment) / m * np.eye(m)
        self.K = np.linalg.inv(np.linalg.cholesky(damped)).T
        self.back = np.linalg.inv(self.K)
        self.P = np.linalg.inv(damped)


def cohort(table: Table, n: int, round: int) -> tuple[list[int], float]:
    """Who takes part, and the probability of each to do so."""
    scheme, seed = table["participation"], table["seed"]
    if scheme["scheme"] == "full":
        return list(range(n)), 1.0
    if scheme["scheme"] == "bernoulli":
        coins = [int(words(seed, PARTICIPATION, round, i, 1)[0]) / 2**32 for i in range(n)]
        return [i for i in range(n) if coins[i] < scheme["p"]], scheme["p"]
    k, chosen = scheme["k"], set()
    numbers = [int(word) for word in words(seed, PARTICIPATION, round, SERVER, 2 * k)]
    for i, top in enumerate(range(n - k, n)):  # Floyd
        draw = ((numbers[2 * i] * 2**32 + numbers[2 * i + 1]) * (top + 1)) // 2**64
        chosen.add(draw if draw not in chosen else top)
    return sorted(chosen), k / n


def step_size(value: float | str, L: float) -> float:
    if not isinstance(value, str):
        return float(value)
    top, bottom = value.split("/")
    return float(top) / (float(bottom.strip("()").replace("L", "") or 1) * L)


# ---------------------------------------------------------------------------------------------------------- the ledger


@dataclass
class Sent:
    """A line of the ledger."""

    client: int
    direction: str
    kind: str
    messages: int
    formula_bits: float
    payload_bits: int
    frame_bytes: int


def varint(number: int) -> int:
    octets = 1
    while number >= 128:
        octets, number = octets + 1, number // 128
    return octets


# --------------------------------------------------------------------------------------------------------- a federation


@dataclass
class Snapshot:
    """After a round. mean_memory: h, kept by its own recursion; copies: the server's h_i under PP1."""

    cohort: list[int]
    model: Row
    memories: list[Row]
    mean_memory: Row
    copies: list[Row]
    errors: list[Row]
    error: Row
    average: Row
    sent: list[Sent]
    last: list[Row]
    held: Row
    H: Row
    H_i: list[Row]


def play(table: Table, world: World, model: Row) -> Iterator[Snapshot]:
    """The rounds of an experiment (its complete TOML tables), from ``model``."""
    up, down, server = table["uplink"], table["downlink"], table["server"]
    n, d, seed = len(world.shards), world.d, table["seed"]
    samples = [len(y) for _, y in world.shards]
    v = [size / sum(samples) if server["weights"] == "pooled" else 1 / n for size in samples]
    L = world.smoothness(server["smoothness"])
    gamma_0, eta = step_size(server["step"], L), step_size(table["local"]["step"], L)
    alpha = memory_rate(up, d)
    w = model.copy()
    h_i, copies = [np.zeros_like(w) for _ in range(n)], [np.zeros_like(w) for _ in range(n)]
    e_i, e, h, iterates = [np.zeros_like(w) for _ in range(n)], np.zeros_like(w), np.zeros_like(w), []
    seen: dict[int, int] = {}
    updates: list[int] = []  # bytes of the update of each round
    rate, white = table["rate"], table["whitening"]
    solvers = [Solver() for _ in range(n)]
    central = Solver()
    at_server = rate["rule"] == "salr" and rate["level"] == "server"
    pooled: Whitening | None = None
    held = [0] * n
    a = up["correction"] if up["correction"] != "auto" else 1 / (1 + 2 * omega(up, d))
    full = up["synchronise"] if up["synchronise"] != "auto" else 1 / (1 + omega(up, d))
    beta = float(down["rate"]) if down["rate"] != "auto" else slow_rate(omega(down, d))
    models = down["memory"] == "model"
    k_i, what, H = [np.zeros_like(w) for _ in range(n)], w.copy(), w.copy() if models else np.zeros_like(w)
    H_i = [np.zeros_like(w) for _ in range(n)]

    for k in range(table["rounds"]):
        gamma = gamma_0 if server["schedule"] == "constant" else gamma_0 / math.sqrt(k + 1)
        S, p = cohort(table, n, k)
        in_full = words(seed, SYNCHRONISE, k, SERVER, 1)[0] / 2**32 < full
        if in_full:
            S, p = list(range(n)), 1.0
        refresh = white["mode"] == "shared" and bool(S)
        refresh &= pooled is None or bool(white["refresh"] and k - pooled.made >= white["refresh"])
        count, triangle = 0 if pooled is None else pooled.count, d * (d + 1) // 2
        sent, what_i = [], dict.fromkeys(S, what)
        for i in S:
            lacking, newest = count - held[i], 0 if refresh else min(count - held[i], 1)
            if down["each"]:
                line, what_i[i], H_i[i] = own_message(table, i, k, w, H_i[i], i in seen, beta)
                sent.append(line)
                seen[i] = k
                continue
            # Before anything is sent H is the model, or zero; later H is the model that clients hold if beta = 1.
            rows = 1 if down["memory"] == "none" or k == 0 or (models and beta == 1) else 2
            whole, moments = rows * w.nbytes + newest * 8 * triangle, lacking * 8 * triangle
            line = catch_up(down, i, k, seen, updates, (n, d, rows * d, rows * w.nbytes), (moments, whole))
            late = lacking if line.kind == "updates" else newest
            sent += [line] + [moment_line(i, "down", late, triangle)] * (late > 0)
            held[i] = count
        if refresh:
            total = sum(v[i] for i in S)
            moment = sum(v[i] / total * world.shards[i][0].T @ world.shards[i][0] / samples[i] for i in S)
            if pooled is not None:
                moment = white["ema"] * pooled.moment + (1 - white["ema"]) * moment
            pooled = Whitening(np.asarray(moment), white["damping"], k, count + 1)
            sent += [moment_line(i, way, 1, triangle) for i in S for way in ("up", "down")]
            held = [pooled.count if i in S else held[i] for i in range(n)]
        P, into, back = (None, np.eye(d), np.eye(d)) if pooled is None else (pooled.P, pooled.K, pooled.back)
        if at_server and S and k % rate["period"] == 0:
            found = [sharpness(rate, world, what_i[i], *first_batch(table, world, i, k, solvers[i])) for i in S]
            central.factor = relative_sharpness(rate, float(np.median(found)), central.history)
            sent += [Sent(i, "up", "sharpness", 1, 32.0, 64, HEADER_BYTES + 8) for i in S]
        gamma = gamma * central.factor
        D, initial = {}, {}
        for i in S:
            g = direction(table, world, what_i[i], i, k, eta, solvers[i], P)
            if in_full or (k == 0 and up["initial"] == "gradient"):
                h_i[i], copies[i], k_i[i] = g.copy(), g.copy(), g.copy()
                initial[i] = g
                sent.append(Sent(i, "up", "memory", 1, 32.0 * d, 8 * g.nbytes, HEADER_BYTES + g.nbytes))
            if in_full:
                continue
            delta = g - h_i[i] if a == 1 else g - k_i[i] - a * (h_i[i] - k_i[i])
            k_i[i] = g
            c = gamma if up["feedback"] == "step" else up["feedback"]
            delta = delta + c * e_i[i]
            message = compress(up, delta @ into, (seed, UPLINK, k, i))
            D[i] = message.sent @ back
            if up["memory"]:
                h_i[i] = h_i[i] + alpha * D[i]
            e_i[i] = delta - D[i]
            bits, shared = formula_bits(up, d)
            sent.append(
                Sent(
                    i,
                    "up",
                    "upload",
                    1,
                    bits + shared / len(S),
                    8 * message.bytes,
                    HEADER_BYTES + message.bytes,
                )
            )

        if in_full or (k == 0 and up["initial"] == "gradient"):
            h = np.asarray(sum(v[i] * initial[i] for i in S))
        part = {"expected": p, "present": sum(v[j] for j in D), "registered": 1.0}[server["normalise"]]
        share = {i: v[i] / part for i in D}
        ghat = np.zeros_like(w)
        if not up["memory"] or server["memory"] == "pp1":
            if D:
                ghat = together(server, [D[i] + copies[i] for i in D], list(share.values()))
            for i in D if up["memory"] else ():
                copies[i] = copies[i] + alpha * D[i]
        else:
            ghat = h.copy()
            for i in D:
                ghat = ghat + share[i] * D[i]
                h = h + alpha * (share[i] if server["paper_compat"] else v[i]) * D[i]

        c = gamma if down["feedback"] == "step" else down["feedback"]
        step = ghat if P is None else P @ ghat
        if down["each"]:
            w = w - gamma * step
        else:
            target = (w - gamma * step if models else step + c * e) - H
            message = compress(down, target @ back.T, (seed, DOWNLINK, k, SERVER))
            moved = message.sent @ into.T
            e = target - moved
            updates.append(message.bytes + 8 * at_server)
            what = H + moved if models else w - gamma * (H + moved)
            w, H = w - gamma * step if models else what, H + beta * moved * (down["memory"] != "none")
        iterates.append(w)
        yield Snapshot(
            S,
            w,
            list(h_i),
            h,
            list(copies),
            list(e_i),
            e,
            np.mean(iterates, axis=0),
            sent,
            list(k_i),
            what,
            H,
            list(H_i),
        )


def together(server: Table, rows: list[Row], shares: list[float]) -> Row:
    """ghat of a cohort by [server] aggregate, trim and clip; of two middle lengths the lower one counts."""
    n, total = len(rows), sum(shares)
    if server["clip"]:
        rows = shortened(rows, server["clip"])
    match server["aggregate"]:
        case "mean":
            return np.asarray(sum(share * row for share, row in zip(shares, rows, strict=True)))
        case "median":
            return total * np.median(rows, axis=0)
        case "trimmed-mean":
            out = next(k for k in range(n) if k >= server["trim"] * n or n - 2 * k <= 2)
            return total * np.sort(rows, axis=0)[out : n - out].mean(axis=0)
    z = np.mean(shortened(rows, 1.0), axis=0)  # Weiszfeld, four times
    for _ in range(4):
        pulls = [1 / max(math.dist(row, z), 1e-6 * middle_length(rows) + 1e-300) for row in rows]
        z = sum(pull * row for pull, row in zip(pulls, rows, strict=True)) / sum(pulls)
    return np.asarray(total * z)


def middle_length(rows: list[Row]) -> float:
    return sorted(math.hypot(*row) for row in rows)[(len(rows) - 1) // 2]


def shortened(rows: list[Row], times: float) -> list[Row]:
    bound = times * middle_length(rows)
    return [row * min(1.0, bound / (math.hypot(*row) or 1.0)) for row in rows]


def memory_rate(up: Table, d: int) -> float:
    """alpha: as given, or 1 / (2 (omega + 1))."""
    if up["rate"] != "auto":
        return float(up["rate"])
    if up["correction"] != 1:
        return 1.0
    quantizer = {"compressor": "quantize", "levels": up["rate_levels"], "norm": "l2", "bucket": 0}
    return slow_rate(omega(quantizer if up["rate_levels"] else up, d))


def slow_rate(constant: float) -> float:
    """1 / (2 (omega + 1)), and 1 for a biased compressor."""
    return 1 / (2 * (constant + 1)) if constant < math.inf else 1.0


def first_batch(table: Table, world: World, i: int, k: int, solver: Solver) -> tuple[Row, Row]:
    """The samples of a client's first step in round k."""
    local, (X, y) = table["local"], world.shards[i]
    if local["order"] == "fresh":
        return batch(table["seed"], local["batch"], X, y, i, k, 0)
    b = min(local["batch"], len(y)) or len(y)
    epoch, j = divmod(solver.steps, -(-len(y) // b))
    some = places(local["order"], table["seed"], i, len(y), epoch, len(world.shards))[j * b : (j + 1) * b]
    return X[some], y[some]


def moment_line(i: int, way: str, count: int, triangle: int) -> Sent:
    """``count`` second moments in one frame: their lower triangles in float64."""
    numbers = count * triangle
    return Sent(i, way, "moments", count, 32.0 * numbers, 64 * numbers, HEADER_BYTES + 8 * numbers)


def catch_up(
    down: Table,
    i: int,
    k: int,
    seen: dict[int, int],
    updates: list[int],
    of: tuple[int, int, int, int],
    beside: tuple[int, int],
) -> Sent:
    """Artemis, Algorithm 1: the whole model, or the updates since the client's last round where they are not longer.

    of: N, d, numbers and bytes of a whole model; beside: bytes of moments that replaying takes as well, and of all
    that the model takes.
    """
    first, (n, d, numbers, model) = seen.get(i), of
    seen[i] = k
    missed = [] if first is None else updates[first:]
    framed = sum(size + varint(size) for size in missed)
    if first is None or framed + beside[0] > beside[1]:
        return Sent(i, "down", "model", 1, 32.0 * numbers, 8 * model, HEADER_BYTES + model)
    bits, shared = formula_bits(down, d)
    return Sent(
        i, "down", "updates", len(missed), len(missed) * (bits + shared / n), 8 * sum(missed), HEADER_BYTES + framed
    )


def own_message(table: Table, i: int, k: int, w: Row, H: Row, known: bool, beta: float) -> tuple[Sent, Row, Row]:
    """Rand-MCM: what a client is sent, the model at which it computes, its H afterwards; the whole model at first."""
    if not known:
        return Sent(i, "down", "model", 1, 32.0 * len(w), 8 * w.nbytes, HEADER_BYTES + w.nbytes), w.copy(), w.copy()
    down = table["downlink"]
    message = compress(down, w - H, (table["seed"], DOWNLINK, k, i))
    octets = message.bytes + varint(message.bytes)
    line = Sent(i, "down", "updates", 1, sum(formula_bits(down, len(w))), 8 * message.bytes, HEADER_BYTES + octets)
    return line, H + message.sent, H + beta * message.sent
