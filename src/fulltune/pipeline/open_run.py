"""Open a run: check its inputs, lock its folder, and write what it begins with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fulltune.config import Config, dump_config
from fulltune.data.findings import Audit
from fulltune.pipeline import resume as resuming
from fulltune.pipeline.fold_configs import check_folds
from fulltune.pipeline.job import Job, prepare_job, with_chat_date_of
from fulltune.runtime import distributed
from fulltune.runtime.files import check_writable
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.logs import run_log
from fulltune.runtime.progress import Progress
from fulltune.runtime.stopwatch import Stopwatch
from fulltune.runtime.version import versions
from fulltune.store.runs import RunFolder, new_run_id

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_run(
    config: Config,
    out: str | Path,
    resume: str | Path | None,
    allow_changed: bool,
    progress: Progress,
    watch: Stopwatch,
) -> Iterator[tuple[Job, RunFolder]]:
    """Yield the job and the locked folder of a run; processes, log and kernels last as long as the context.

    Args:
        config: The complete config.
        out: The runs folder.
        resume: The run to resume; by default a new one, or the one that restarted processes are part of.
        allow_changed: Resume even if data, config or packages have changed.
        progress: Where stages report.
        watch: Gets the times of the stages.

    Raises:
        FulltuneError: The inputs cannot be used, or do not match the run to resume.
    """
    check_writable(Path(out))
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.joined(_timeout(config.trainer)))
        log_to = stack.enter_context(run_log())
        resume = resume or distributed.on_main(lambda: resuming.restarted(out))
        config = config if resume is None else with_chat_date_of(config, str(resume), out)
        run_id = distributed.broadcast(new_run_id(config.task, config.model))
        # Rows of a resumed run are compared with those that it began with, which says more than their audit.
        refuse = partial(_refuse, config, out, run_id) if resume is None else _ignore
        with progress.stage("data and model", total=1, unit="step") as bar:
            if config.data.is_crossed:
                check_folds(config)
            # The audit is written to the run folder before its errors are raised.
            job = prepare_job(config, out, watch, checks_audit=False, refuse=refuse)
            bar.advance()
        folder = stack.enter_context(resuming.locked(out, resume, run_id))
        if distributed.is_main():
            log_to(folder.path / "run.log")
        _begin(job, folder, allow_changed)
        from fulltune.models.fast_kernels import fast_kernels  # imports torch

        stack.enter_context(pinned_kernels(job.config.speed.kernels, folder.path / "kernels.json"))
        stack.enter_context(fast_kernels(job.base.model))
        yield job, folder


def _begin(job: Job, folder: RunFolder, allow_changed: bool) -> None:
    """Write config and audit to the folder of a run, and check what is known before its model is used."""
    config = job.config
    _log.info("run %s: %s by %s on %s", folder.run_id, config.task, config.method, config.model)
    _log.info("versions: %s", ", ".join(f"{name} {version}" for name, version in versions().items()))
    resuming.check(folder, job, allow_changed)
    folder.write_text("config.yaml", dump_config(config))
    audit_file = folder.write_text("audit.json", job.audit.to_json())
    job.check_audit(where=str(audit_file))


def _timeout(trainer: Mapping[str, Any]) -> float:
    """Return the seconds that processes wait for each other; a wrong value is reported with the other options."""
    asked = trainer.get("ddp_timeout")
    return float(asked) if isinstance(asked, (int, float)) and asked > 0 else distributed.TIMEOUT


def _ignore(audit: Audit) -> None:
    """Leave the errors of an audit to a later check."""


def _refuse(config: Config, out: str | Path, run_id: str, audit: Audit) -> None:
    """Leave a run with the audit of rows that cannot be used, and raise its errors."""
    with resuming.locked(out, None, run_id) as folder:
        folder.write_text("config.yaml", dump_config(config))
        where = folder.write_text("audit.json", audit.to_json())
        audit.raise_if_broken(where=str(where))
