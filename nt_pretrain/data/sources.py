"""The sources of a run, opened: their splits and orders, what they hold, how they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.mixture import Mixture, phases_of
from nt_pretrain.data.order import Order
from nt_pretrain.data.position import Plan
from nt_pretrain.data.storage.store import Note, store_of
from nt_pretrain.data.tokenizer import load_tokenizer

ONLY = "data"
"""Name of the source of a run that has one."""


def paths_of(config: Config) -> dict[str, str]:
    """Folder or URL of every source by name, in the order of the names: what a run reads must not depend on the order
    of lines in a file.
    """
    data = config.data
    return {name: path.rstrip("/") for name, path in sorted((data.sources or {ONLY: data.path}).items())}


@dataclass(frozen=True)
class Sources:
    """One split (train or validation) of every source, in the order of their names.

    Attributes:
        tokenizer: sha256 of the run's tokenizer; empty where the sources hold pictures.
    """

    names: tuple[str, ...]
    splits: tuple[Split, ...]
    tokenizer: str

    @staticmethod
    def open(
        config: Config, split: str, note: Note = lambda kind, words: None, alive: Callable[[], None] = lambda: None
    ) -> Sources:
        """Open a split of every source; ``note`` and ``alive`` as for :class:`Bucket`.

        Raises:
            DataError: one is not there, or they do not go together or with the tokenizer.
        """
        paths = paths_of(config)
        wait = config.stall_seconds / 2
        stores = [
            store_of(config.data, f"{path}/{split}", note=note, alive=alive, wait_seconds=wait)
            for path in paths.values()
        ]
        manifests = [store.manifest() for store in stores]
        pictures = [manifest.format == "images" for manifest in manifests]
        if any(pictures) and not all(pictures):
            raise DataError("data.sources: some hold pictures and some text; a run reads one or the other")
        if all(pictures):
            different = [store.location for store, each in zip(stores, manifests, strict=True)
                         if each.classes != manifests[0].classes]  # fmt: skip
            if different:
                raise DataError(f"{', '.join(different)}: not the classes of {stores[0].location}")
            splits = [Split(store, manifest, None) for store, manifest in zip(stores, manifests, strict=True)]
            return Sources(tuple(paths), tuple(splits), "")
        if config.model.sees_pictures:
            raise DataError(
                f"{stores[0].location} holds text, and {config.model.family} is trained on pictures; set data.path to "
                "prepared pictures (python launch/prepare.py images)"
            )
        tokenizer = load_tokenizer(config.data.tokenizer)
        if tokenizer.size != config.model.vocab_size:
            raise DataError(
                f"{config.data.tokenizer} has {tokenizer.size} pieces, model.vocab_size is {config.model.vocab_size}; "
                f"set model.vocab_size={tokenizer.size}"
            )
        splits = [Split.open(store, tokenizer, manifest) for store, manifest in zip(stores, manifests, strict=True)]
        for each in splits:
            each.share_open_files(len(splits))
        return Sources(tuple(paths), tuple(splits), tokenizer.sha256)

    @staticmethod
    def of_text(config: Config, split: str) -> Sources:
        """As :meth:`open`, for a model of text.

        Raises:
            DataError: also if the sources hold pictures.
        """
        sources = Sources.open(config, split)
        if sources.are_pictures:
            raise DataError(
                f"{sources.splits[0].location} holds pictures, and this model is trained on text; set data.path to "
                "prepared text, or model.family"
            )
        return sources

    @staticmethod
    def of_pictures(config: Config, split: str) -> Sources:
        """As :meth:`open`, for a model of pictures.

        Raises:
            DataError: also if the pictures have another number of classes than ``model.classes``.
        """
        sources = Sources.open(config, split)
        classes = len(sources.splits[0].manifest.classes)
        if classes != config.model.classes:
            raise DataError(
                f"{sources.splits[0].location} has {classes:,} classes, model.classes is {config.model.classes:,}; set "
                f"model.classes={classes}"
            )
        return sources

    @staticmethod
    def of_model(config: Config, split: str) -> Sources:
        """As :meth:`open`, for what the model of ``config`` reads. Errors as those of the two above."""
        return Sources.of_pictures(config, split) if config.model.sees_pictures else Sources.of_text(config, split)

    @property
    def are_pictures(self) -> bool:
        return self.splits[0].manifest.format == "images"

    @property
    def documents(self) -> dict[str, int]:
        """Documents, or pictures, of an epoch of each source."""
        return {name: split.manifest.documents for name, split in zip(self.names, self.splits, strict=True)}

    def orders(self, config: Config) -> list[Order]:
        """The order of each source.

        Raises:
            DataError: one has fewer documents than lanes.
        """
        seed, lanes, window = config.run.seed, config.lanes, config.data.window
        # Copies of a corpus must not be permuted alike; an only one is not named by its user.
        seeds = [seed if name == ONLY else key_of(seed, "source", name) for name in self.names]
        return [
            order_of(split, seed=each, lanes=lanes, window=window)
            for split, each in zip(self.splits, seeds, strict=True)
        ]

    def plan(self, config: Config) -> Plan:
        data = config.data
        fingerprints = {name: split.manifest.fingerprint for name, split in zip(self.names, self.splits, strict=True)}
        return Plan(
            fingerprints, self.tokenizer, config.run.seed, config.lanes, data.window,
            0 if self.are_pictures else data.sequence_length, "" if self.are_pictures else data.packing,
            config.train.global_batch,
        )  # fmt: skip


def mixture_of(config: Config) -> Mixture:
    """Which source each sequence comes from."""
    names = tuple(paths_of(config))
    weights = config.data.weights or dict.fromkeys(names, 1.0)
    phases = phases_of(names, weights, config.data.curriculum)
    return Mixture(names, phases, config.run.seed, config.train.global_batch)
