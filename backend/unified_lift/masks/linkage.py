# SPDX-License-Identifier: GPL-3.0-or-later
"""Contacts between nodes of a graph, and their clustering by signed average linkage."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

NODE_BITS = 31  # there are fewer nodes than 2^31


@dataclass(frozen=True)
class Contacts:
    """Pairs of nodes that touch.

    Attributes:
        pairs: (m, 2) int64, the smaller node first, each pair once.
        lengths: (m,) float64 > 0, how broadly they touch.
        affinity: (m,) float64, above 0 where they belong together, below where not.
    """

    pairs: np.ndarray
    lengths: np.ndarray
    affinity: np.ndarray

    def joined(self, groups: np.ndarray) -> Contacts:
        """The contacts between groups of nodes: lengths add up, affinities average over length.

        Args:
            groups: (n,) int, the group of each node.
        """
        pairs, rows = ordered_pairs(groups[self.pairs])
        keys, inverse = np.unique(_pair_keys(pairs), return_inverse=True)
        pairs = _pairs_of(keys)
        lengths = np.bincount(inverse, self.lengths[rows], len(pairs))
        weighted = np.bincount(inverse, (self.lengths * self.affinity)[rows], len(pairs))
        return Contacts(pairs, lengths, weighted / np.maximum(lengths, 1e-9))

    def less(self, amount: float | np.ndarray) -> Contacts:
        """The same with lower affinities; one amount, or one for each pair (m,)."""
        return replace(self, affinity=self.affinity - amount)


def ordered_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (k, 2) int64 of two different nodes, the smaller first, and their rows (k,) before."""
    pairs = np.sort(pairs.astype(np.int64), axis=1)
    (rows,) = np.nonzero(pairs[:, 0] != pairs[:, 1])
    return pairs[rows], rows


def touching(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of different nodes among (k, 2), each once (m, 2) int64, and how often (m,)."""
    pairs, _ = ordered_pairs(pairs)
    keys, counts = np.unique(_pair_keys(pairs), return_counts=True)
    return _pairs_of(keys), counts


def _pair_keys(pairs: np.ndarray) -> np.ndarray:
    """One number for each pair (k, 2) of nodes, which sorts like it, several times as fast."""
    return pairs[:, 0] << NODE_BITS | pairs[:, 1]


def _pairs_of(keys: np.ndarray) -> np.ndarray:
    return np.stack([keys >> NODE_BITS, keys & (1 << NODE_BITS) - 1], 1)


def average_linkage(
    num: int, contacts: Contacts, planes: np.ndarray, cannot_link: np.ndarray
) -> np.ndarray:
    """Join the pair with the highest affinity, again and again, until none is above 0.

    The affinity of two clusters is the average over their whole contact, so a leak at one spot
    does not join two objects (signed average linkage, as in GASP, Bailoni et al. 2022).

    Args:
        num: number of nodes.
        contacts: between nodes 0..num-1.
        planes: (num,) int64, the bit of the plane that a node lies on, 0 = none.
        cannot_link: (num,) int64, the bits of planes that it is not joined to, nor any cluster
            with it.

    Returns:
        (num,) int64, the cluster of each node, from 0.
    """
    clusters = _Clusters.of_nodes(num, contacts, planes, cannot_link)
    while clusters.waiting:
        _, a, b, length = heapq.heappop(clusters.waiting)
        contact = clusters.contacts[a].get(b)
        if contact is not None and contact[1] == length and clusters.may_join(a, b):
            clusters.join(a, b)
    return np.unique(clusters.roots(), return_inverse=True)[1]


@dataclass
class _Clusters:
    """Clusters, named by one of their nodes, while they grow.

    Attributes:
        contacts: for each cluster {other: (affinity times length, length)}.
        parent: the cluster that swallowed this one, itself if it lives.
        planes, cannot_link: as those of `average_linkage`, all bits of its nodes.
        waiting: heap of (-affinity, a, b, length); entries whose length is outdated are void.
    """

    contacts: list[dict[int, tuple[float, float]]]
    parent: list[int]
    planes: list[int]
    cannot_link: list[int]
    waiting: list[tuple[float, int, int, float]]

    @classmethod
    def of_nodes(
        cls, num: int, contacts: Contacts, planes: np.ndarray, cannot_link: np.ndarray
    ) -> _Clusters:
        """Each node a cluster of its own."""
        empty: list[dict] = [{} for _ in range(num)]
        clusters = cls(empty, list(range(num)), planes.tolist(), cannot_link.tolist(), [])
        columns = contacts.pairs.tolist(), contacts.lengths.tolist(), contacts.affinity.tolist()
        for (a, b), length, affinity in zip(*columns):
            clusters.set_contact(a, b, affinity * length, length)
        return clusters

    def may_join(self, a: int, b: int) -> bool:
        return not (self.planes[a] & self.cannot_link[b] or self.planes[b] & self.cannot_link[a])

    def set_contact(self, a: int, b: int, weighted: float, length: float) -> None:
        self.contacts[a][b] = self.contacts[b][a] = (weighted, length)
        if weighted > 0 and self.may_join(a, b):
            heapq.heappush(self.waiting, (-weighted / length, a, b, length))

    def join(self, a: int, b: int) -> None:
        """The cluster with more contacts swallows the other."""
        if len(self.contacts[a]) < len(self.contacts[b]):
            a, b = b, a
        self.parent[b] = a
        self.planes[a] |= self.planes[b]
        self.cannot_link[a] |= self.cannot_link[b]
        del self.contacts[a][b]
        for other, (weighted, length) in self.contacts[b].items():
            if other == a:
                continue
            del self.contacts[other][b]
            before = self.contacts[a].get(other, (0.0, 0.0))
            self.set_contact(a, other, before[0] + weighted, before[1] + length)
        self.contacts[b] = {}

    def roots(self) -> list[int]:
        """The living cluster of each node."""
        for node in range(len(self.parent)):
            path = [node]
            while self.parent[path[-1]] != path[-1]:
                path.append(self.parent[path[-1]])
            for step in path:
                self.parent[step] = path[-1]
        return self.parent
