"""Orders of very many images that nobody has to store: where an image stands is computed when it is wanted.

A Feistel network that adds modulo a and b permutes a × b ≥ n places, whatever its round function, and walking along
its cycles until one of the first n places is met keeps it a permutation of those (Black & Rogaway, "Ciphers with
arbitrary finite domains", CT-RSA 2002). One place costs a few dozen integer operations and no memory, whether n is a
hundred or fifty million, and a resumed run computes the same places from its step counter.
"""

import numpy as np

ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, bits without a pattern: neighbouring counters become far apart keys


def endless(positions: np.ndarray, sizes: np.ndarray | int, seed: int, groups: np.ndarray | int = 0) -> np.ndarray:
    """Which image stands at each position of a stream that goes through `sizes` images again and again.

    Every pass holds each image once, in an order of its own.

    Args:
        positions: int64, shape (m,), from 0.
        sizes: images in a pass, of each position's group or of all.
        seed: names the orders; 63 bits.
        groups: names streams that have nothing to do with each other, from 0.

    Returns:
        int64, shape (m,), from 0 to sizes - 1.
    """
    sizes, groups = np.broadcast_to(sizes, positions.shape), np.broadcast_to(groups, positions.shape)
    passes, places = np.divmod(positions, sizes)
    named = _mix(groups.astype(np.uint64) * GOLDEN + np.uint64(seed))
    return shuffled(places, sizes, _mix(named + passes.astype(np.uint64) * GOLDEN))


def shuffled(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each place goes in the permutation of its `sizes` places that its key names.

    Args:
        places: int64, shape (m,), from 0 to sizes - 1.
        sizes: int64, shape (m,).
        keys: uint64, shape (m,).

    Returns:
        int64, shape (m,). Over the places 0 … n - 1 with one size n and one key, each of 0 … n - 1 once.
    """
    sizes = sizes.astype(np.uint64)
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    columns = (sizes + rows - np.uint64(1)) // rows
    found = _feistel(places.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(found >= sizes)  # a few per thousand, since rows × columns is hardly more than the size
    while outside.size:
        found[outside] = _feistel(found[outside], rows[outside], columns[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside]]
    return found.astype(np.int64)


def _feistel(places: np.ndarray, rows: np.ndarray, columns: np.ndarray, keys: np.ndarray) -> np.ndarray:
    row, column = places // columns, places % columns
    for turn in range(ROUNDS):
        keys = _mix(keys + GOLDEN)
        if turn % 2:
            row = (row + _mix(column + keys) % rows) % rows
        else:
            column = (column + _mix(row + keys) % columns) % columns
    return row * columns + column


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words in which every bit depends on every bit (the finaliser of SplitMix64, Steele et
    al., "Fast splittable pseudorandom number generators", OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
