"""The sources of a run, opened: their splits and orders, what they hold, how they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nt_pretrain.config.model_section import Kind
from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.mixture import Mixture, phases_of
from nt_pretrain.data.order import Order
from nt_pretrain.data.position import Plan
from nt_pretrain.data.storage.store import Note, store_of
from nt_pretrain.data.tokenizer import load_tokenizer

VERBS: dict[Kind, str] = {"text": "text", "pictures": "images", "rows": "rows"}
"""Of launch/prepare.py."""
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
        tokenizer: sha256 of the run's tokenizer; empty unless the sources hold text.
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
        kinds = sorted({manifest.kind for manifest in manifests})
        if len(kinds) > 1:
            raise DataError(f"data.sources: some hold {kinds[0]} and some {kinds[1]}; a run reads one or the other")
        if config.model.classifies and kinds[0] != config.model.data:
            raise _other_kind(stores[0].location, kinds[0], config)
        if kinds[0] != "text":
            splits = [Split(store, manifest, None) for store, manifest in zip(stores, manifests, strict=True)]
            _check_labelled(splits, config)
            return Sources(tuple(paths), tuple(splits), "")
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
            DataError: also if the sources hold something else.
        """
        sources = Sources.open(config, split)
        if sources.kind != "text":
            raise _other_kind(sources.splits[0].location, sources.kind, config)
        return sources

    @staticmethod
    def of_labelled(config: Config, split: str) -> Sources:
        """As :meth:`open`, for a model of pictures or rows.

        Raises:
            DataError: also if the samples have another number of classes than ``model.classes``.
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
        return Sources.of_labelled(config, split) if config.model.classifies else Sources.of_text(config, split)

    @property
    def kind(self) -> Kind:
        """What they hold."""
        return self.splits[0].manifest.kind

    @property
    def documents(self) -> dict[str, int]:
        """Documents, pictures or rows of an epoch of each source."""
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
            data.sequence_length if self.kind == "text" else 0, data.packing if self.kind == "text" else "",
            config.train.global_batch,
        )  # fmt: skip


def _other_kind(location: str, kind: Kind, config: Config) -> DataError:
    wanted, family = config.model.data, config.model.family
    who = f"{family} is trained on {wanted}" if config.model.classifies else "this model is trained on text"
    return DataError(
        f"{location} holds {kind}, and {who}; set data.path to prepared {wanted} (python launch/prepare.py "
        f"{VERBS[wanted]}), or model.family"
    )


def _check_labelled(splits: list[Split], config: Config) -> None:
    """Raises:
    DataError: sources of pictures or rows do not go together, or rows not with the model.
    """
    first = splits[0]
    for each in splits:
        if each.manifest.classes != first.manifest.classes:
            raise DataError(f"{each.location}: not the classes of {first.location}")
        if config.model.data == "rows" and each.manifest.features != config.model.features:
            raise DataError(
                f"{each.location} has rows of {each.manifest.features:,} numbers, model.features is "
                f"{config.model.features:,}; set model.features={each.manifest.features}"
            )


def mixture_of(config: Config) -> Mixture:
    """Which source each sequence comes from."""
    names = tuple(paths_of(config))
    weights = config.data.weights or dict.fromkeys(names, 1.0)
    phases = phases_of(names, weights, config.data.curriculum)
    return Mixture(names, phases, config.run.seed, config.train.global_batch)
