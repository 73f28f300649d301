"""Where loops within a strip end: what a causal mask hides of all rows of the strip is not computed, nor read.

    for t in strip:                                         for t in strip:
        for s < T:  e[t, s] = exp(shown[t, s])       ->         for s < last(strip):  e[t, s] = exp(shown[t, s])
    y[t, e] = sum[s < T] e[t, s] * v[s, e]                  y[t, e] = sum[s < last(strip)] e[t, s] * v[s, e]

A sum may leave out terms that are 0, a maximum those that are −∞. What has both indices as its axes may be left out
where all that read it leave that out as well; loops are as short as all of their members allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy as sp

from chainrule.schedule.masks import below
from chainrule.schedule.tree import Branch, Ground


@dataclass(frozen=True)
class Clip:
    """Of a loop in a strip: `index` needs no place beyond the last of the strip, or with `starts` before its first."""

    task: int
    index: sp.Symbol
    starts: bool


def clips_of(paths: Mapping[int, tuple[Branch, ...]], ground: Ground) -> frozenset[Clip]:
    """What may be left out, all at once; `paths`: the loops around each task."""
    strips = {t: strip for t, path in paths.items() for strip in path if strip.strip} | bands_of(paths, ground)
    found = {clip for t, strip in strips.items() for clip in _possible(t, strip, ground)}
    loops: dict[tuple[int, sp.Symbol], Branch] = {
        (t, branch.opened[t]): branch for t in strips for branch in paths[t] if not branch.strip
    }

    def fails(clip: Clip) -> bool:
        loop = loops.get((clip.task, clip.index))
        together = {} if loop is None else loop.opened
        if any(Clip(t, symbol, clip.starts) not in found for t, symbol in together.items()):
            return True
        return _is_of_axes(clip, strips[clip.task], ground) and not _unread(clip, strips[clip.task], ground, found)

    while failing := {clip for clip in found if fails(clip)}:
        found -= failing
    return frozenset(found)


def bands_of(paths: Mapping[int, tuple[Branch, ...]], ground: Ground) -> dict[int, Branch]:
    """The band that each task of a matrix is in, as a strip around everything: the kernel's block."""
    bands = {t: band for t in paths if (band := ground.links.tasks[t].band) is not None}
    opened = {t: band.index.symbol for t, band in bands.items()}
    return {t: Branch(-1, band.index.extent, True, "", opened, (), strip=band.size) for t, band in bands.items()}


def _possible(t: int, strip: Branch, ground: Ground) -> set[Clip]:
    task = ground.links.tasks[t]
    if task.scattered or task.store is not None:
        return set()
    clips = {
        Clip(t, i.symbol, starts)
        for i in task.indices
        if i.symbol != strip.opened[t] and i.extent == strip.extent
        for starts in (False, True)
    }
    return {clip for clip in clips if _is_of_axes(clip, strip, ground) or _adds_nothing(clip, strip, ground)}


def _is_of_axes(clip: Clip, strip: Branch, ground: Ground) -> bool:
    axes = {axis.symbol for axis in ground.links.tasks[clip.task].axes}
    return {clip.index, strip.opened[clip.task]} <= axes


def _adds_nothing(clip: Clip, strip: Branch, ground: Ground) -> bool:
    """Whether the terms that would be left out are 0, or what else changes nothing."""
    row = strip.opened[clip.task]
    low, high = (row, clip.index) if clip.starts else (clip.index, row)
    conditions = (below(c, (low, high)) for c in ground.masks.get(clip.task, ()))
    return any(c is not None and (c.low, c.high) == (low, high) and c.shift <= 0 for c in conditions)


def _unread(clip: Clip, strip: Branch, ground: Ground, found: set[Clip]) -> bool:
    """Whether all that read the task's result leave out the same places of it."""
    links = ground.links
    task = links.tasks[clip.task]
    axis = task.target.index(clip.index)
    readers = links.readers.get(task.out, ())
    if task.out in (ground.needed or ()) or not all(r in strip.opened for r in readers):
        return False
    return all(
        Clip(r, read.indices[axis], clip.starts) in found for r in readers for read in links.tasks[r].reads_of(task.out)
    )
