"""What the first rank tells of a failure that began elsewhere, on real ranks that really leave."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nt_pretrain.config.schema import Config
from nt_pretrain.observe.log import open_rank_log
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.parallel.watchdog import Watchdog
from nt_pretrain.train.failures import exit_code_of, explained, words_of
from tests.gloo import RanksFailed, run_ranks


def _fails_on_rank_one(rank: int, world: int, folder: Path) -> None:
    config = Config()
    ranks = connect(config)
    watchdog = Watchdog(ranks, 20.0)
    open_rank_log(folder / f"rank_{rank:05d}.log", rank)
    if rank == 1:
        logging.getLogger("nt_pretrain").error(
            "rank 1 failed:\nTraceback:\n  somewhere\nRuntimeError: uncorrectable ECC error"
        )
        os._exit(1)
    try:
        dist.all_reduce(torch.zeros(1), group=ranks.control)
    except RuntimeError as error:
        told = explained(error, config, rank, watchdog, folder)
        words = words_of(told, rank=rank, timeout_seconds=20)
        (folder / "told").write_text(f"{exit_code_of(told)} {words}")
    watchdog.close()


def test_the_first_rank_names_the_first_cause(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed):
        run_ranks(_fails_on_rank_one, 2, tmp_path, timeout=60)
    told = (tmp_path / "told").read_text()
    assert told.startswith("1 rank 0: another rank has gone; its own words, here or under ranks/ in the run directory")
    assert told.endswith("; the first cause: rank 1: RuntimeError: uncorrectable ECC error")
